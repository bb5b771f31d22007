// Measurements of the page: drawn and skipped frames, and their age.

const WINDOW_MS = 2000;

export class Meters {
  skipped = 0;
  #drawn = [];
  #latencies = [];
  #last = null;

  // Record a drawn frame, with its age in milliseconds since capture, or null if not known.
  count(head, ageMs) {
    const now = performance.now();
    this.#drawn.push(now);
    if (ageMs !== null) {
      this.#latencies.push([now, ageMs]);
    }
    // Sequences of two epochs cannot be compared.
    if (this.#last?.epoch === head.epoch) {
      this.skipped += Math.max(head.sequence - this.#last.sequence - 1, 0);
    }
    this.#last = head;
  }

  // Forget the previous frame, because it is unknown how many frames a lost connection missed.
  restart() {
    this.#last = null;
    this.#latencies = [];
  }

  get fps() {
    const now = performance.now();
    this.#drawn = this.#drawn.filter((at) => at > now - WINDOW_MS);
    return this.#drawn.length / (WINDOW_MS / 1000);
  }

  // Median latency of the last seconds, in milliseconds; null without a frame.
  get latencyMs() {
    const now = performance.now();
    this.#latencies = this.#latencies.filter(([at]) => at > now - WINDOW_MS);
    const sorted = this.#latencies.map(([, latency]) => latency).sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : null;
  }
}
