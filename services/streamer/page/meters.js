// What the page measures itself: frames drawn and skipped, and how old they were.

const WINDOW_MS = 2000;

export class Meters {
  skipped = 0;
  #drawn = [];
  #latencies = [];
  #last = null;

  // A frame was drawn, so many milliseconds after its capture; null where that is not known.
  count(head, ageMs) {
    const now = performance.now();
    this.#drawn.push(now);
    if (ageMs !== null) {
      this.#latencies.push([now, ageMs]);
    }
    if (this.#last?.epoch === head.epoch) {
      this.skipped += Math.max(head.sequence - this.#last.sequence - 1, 0);
    }
    this.#last = head;
  }

  // Forget the previous frame: after a lost connection nobody knows what was missed.
  restart() {
    this.#last = null;
    this.#latencies = [];
  }

  get fps() {
    const now = performance.now();
    this.#drawn = this.#drawn.filter((at) => at > now - WINDOW_MS);
    return this.#drawn.length / (WINDOW_MS / 1000);
  }

  // Median of the last seconds, null when there is none.
  get latencyMs() {
    const now = performance.now();
    this.#latencies = this.#latencies.filter(([at]) => at > now - WINDOW_MS);
    const sorted = this.#latencies.map(([, latency]) => latency).sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : null;
  }
}
