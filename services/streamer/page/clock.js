// Estimates the offset of the server's clock from this page's, to compute the age of a picture regardless of its latency.
//
// A message that the page sent at its time p arrived at the server at its time s, so the offset is at least p - s. A
// message that the server sent at s arrived here at p, so the offset is at most p - s. The estimate is the largest lower
// bound of the last echoes. It ensures that a picture's displayed age is never less than its true age, and exceeds it by
// at most the latency of an acknowledgement.

// Number of echoes whose bounds are kept.
const KEPT = 64;

export class Clock {
  #least = [];
  #openedAt = null;
  #echoed = null;

  // Update the estimate from a message that has just arrived, on a connection that was requested at openedAt. The estimate
  // of the previous connection is used until the first message of a new one.
  hear({ sent_ms: sent, received_ms: received, echo }, openedAt) {
    if (received !== undefined && openedAt !== this.#openedAt) {
      this.#openedAt = openedAt;
      this.#least = [openedAt - received];
    }
    // Messages repeat the last echo until the page sends again; count it once.
    if (echo && echo[0] !== this.#echoed) {
      this.#echoed = echo[0];
      this.#least.push(echo[0] - echo[1]);
      this.#least.splice(0, this.#least.length - KEPT);
    }
    // If a clock stood still, such as during suspend, earlier bounds contradict the new one: drop them.
    const most = performance.now() - sent;
    if (this.#least.some((least) => least > most)) {
      this.#least = this.#least.filter((least) => least <= most);
    }
  }

  // The server's current time in milliseconds, rather too late than too early; null while it is not known.
  get server() {
    return this.#least.length ? performance.now() - Math.max(...this.#least) : null;
  }

  // Milliseconds since a time of the server's clock; null while its clock is not known.
  since(server) {
    const now = this.server;
    return now === null ? null : Math.max(now - server, 0);
  }
}
