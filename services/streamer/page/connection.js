// The WebSocket to the streamer: receives messages, sends acknowledgements, and reconnects.

const FIRST_WAIT_MS = 300;
// Short enough for the page to reconnect within two seconds after its server is back.
const LONGEST_WAIT_MS = 1500;
// The server sends its state every second; a connection that is silent for this long is dead.
const SILENCE_MS = 6000;
// Longest time without sending the page's clock.
const TELL_TIME_MS = 1000;

export class Connection {
  // Number of consecutive attempts that failed before the connection was open.
  refusals = 0;
  #handlers;
  #clock;
  #socket = null;
  #unacknowledged = [];
  #waitMs = FIRST_WAIT_MS;
  #retry = 0;
  #watchdog = 0;
  #toldAt = 0;
  #openedAt = 0;

  // handlers: frame(head, jpeg), detections(message), state(message), lost(opened)
  constructor(clock, handlers) {
    this.#clock = clock;
    this.#handlers = handlers;
    for (const [target, event] of [
      [window, "online"],
      [document, "visibilitychange"],
    ]) {
      // Do not wait for the retry when the network or the user returns.
      target.addEventListener(event, () => this.#retry && !document.hidden && this.open());
    }
    // Send the clock even without frames to acknowledge, to keep the offset known.
    setInterval(() => performance.now() - this.#toldAt > TELL_TIME_MS && this.#tell({}), TELL_TIME_MS);
  }

  open() {
    clearTimeout(this.#retry);
    this.#retry = 0;
    const address = new URL("ws", document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    this.#openedAt = performance.now();
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.refusals = 0;
      this.#tell({});
    };
    socket.onmessage = (event) => this.#receive(socket, event.data);
    socket.onclose = () => this.#lose(socket);
    this.#socket = socket;
    this.#unacknowledged = [];
    this.#watch(socket);
  }

  // Retry after the given time instead of soon.
  postpone(waitMs) {
    clearTimeout(this.#retry);
    this.#retry = setTimeout(() => this.open(), waitMs);
  }

  // Acknowledge a frame, and with it all earlier ones.
  acknowledge(sequence) {
    const place = this.#unacknowledged.findIndex((frame) => frame.sequence === sequence);
    if (place < 0 || this.#socket?.readyState !== WebSocket.OPEN) {
      return;
    }
    // The time from arrival to drawing is the page's, not the line's, so the server must know it.
    const { cameAt } = this.#unacknowledged[place];
    this.#unacknowledged.splice(0, place + 1);
    this.#tell({ ack: sequence, held_ms: Math.round(performance.now() - cameAt) });
  }

  #tell(content) {
    if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#toldAt = performance.now();
      this.#socket.send(JSON.stringify({ ...content, at: Math.round(this.#toldAt * 1000) / 1000 }));
    }
  }

  #receive(socket, data) {
    // A connection that was given up may still deliver messages.
    if (socket !== this.#socket) {
      return;
    }
    const cameAt = performance.now();
    this.#waitMs = FIRST_WAIT_MS;
    this.#watch(socket);
    if (typeof data === "string") {
      const message = JSON.parse(data);
      this.#clock.hear(message, this.#openedAt);
      this.#handlers[message.type]?.(message);
      return;
    }
    const length = new DataView(data).getUint32(0);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    this.#clock.hear(head, this.#openedAt);
    this.#unacknowledged.push({ sequence: head.sequence, cameAt });
    this.#handlers.frame(head, new Uint8Array(data, 4 + length));
  }

  #watch(socket) {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#lose(socket), SILENCE_MS);
  }

  #lose(socket) {
    if (socket !== this.#socket) {
      return;
    }
    this.#socket = null;
    clearTimeout(this.#watchdog);
    // The close may take a while on a dead line, so do not wait for its event.
    socket.onclose = null;
    socket.close();
    // onopen has set it to 0, so a connection that was open counts as the first of a new series.
    this.refusals += 1;
    // Add jitter, to prevent many pages from reconnecting at the same time.
    const waitMs = this.#waitMs * (0.75 + Math.random() / 2);
    this.#waitMs = Math.min(this.#waitMs * 2, LONGEST_WAIT_MS);
    this.#retry = setTimeout(() => this.open(), waitMs);
    this.#handlers.lost();
  }
}
