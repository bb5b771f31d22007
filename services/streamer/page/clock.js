// How the server's clock differs from this page's, so that the age of a picture is known however long it was on its way.
//
// What the page sent at its time p the server received at its time s, later or at once: the difference of the clocks is
// p - s at least. What the server sent at s came here at p: it is p - s at most. The least is taken, as tight as the last
// echoes make it. So a picture is never younger than its label says, and older by the way of an acknowledgement at most.

const KEPT = 64;

export class Clock {
  #least = [];
  #openedAt = null;
  #echoed = null;

  // Learn from the times in a message that has just come, on a connection that was asked for at openedAt. Until the first
  // message of a new connection what the last one told holds.
  hear({ sent_ms: sent, received_ms: received, echo }, openedAt) {
    if (received !== undefined && openedAt !== this.#openedAt) {
      this.#openedAt = openedAt;
      this.#least = [openedAt - received];
    }
    if (echo && echo[0] !== this.#echoed) {
      this.#echoed = echo[0];
      this.#least.push(echo[0] - echo[1]);
      this.#least.splice(0, this.#least.length - KEPT);
    }
    // A clock that has stood still, as in a machine that slept, contradicts what was learnt before.
    const most = performance.now() - sent;
    if (this.#least.some((least) => least > most)) {
      this.#least = this.#least.filter((least) => least <= most);
    }
  }

  // The server's clock now, in milliseconds, rather too late than too early; null while it is not known.
  get server() {
    return this.#least.length ? performance.now() - Math.max(...this.#least) : null;
  }

  // Milliseconds since a time of the server's clock; null while that is not known.
  since(server) {
    const now = this.server;
    return now === null ? null : Math.max(now - server, 0);
  }
}
