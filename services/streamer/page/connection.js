// The WebSocket to the streamer: messages in, acknowledgements out, and a new attempt when it is lost.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10000;
// The server tells its state every second; a connection that is silent for so long is dead.
const SILENCE_MS = 8000;

export class Connection {
  #handlers;
  #socket = null;
  #unacknowledged = [];
  #waitMs = FIRST_WAIT_MS;
  #retry = 0;
  #watchdog = 0;

  // handlers: frame(head, jpeg), detections(message), state(message), lost(waitMs)
  constructor(handlers) {
    this.#handlers = handlers;
    for (const [target, event] of [[window, "online"], [document, "visibilitychange"]]) {
      target.addEventListener(event, () => this.#retry && !document.hidden && this.open());
    }
  }

  open() {
    clearTimeout(this.#retry);
    this.#retry = 0;
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => this.#receive(socket, event.data);
    socket.onclose = () => this.#lose(socket);
    this.#socket = socket;
    this.#unacknowledged = [];
    this.#watch(socket);
  }

  // Tell the server that a frame is done; those that came before it are done too.
  acknowledge(sequence) {
    const place = this.#unacknowledged.indexOf(sequence);
    if (place < 0 || this.#socket?.readyState !== WebSocket.OPEN) {
      return;
    }
    this.#unacknowledged.splice(0, place + 1);
    this.#socket.send(JSON.stringify({ ack: sequence }));
  }

  #receive(socket, data) {
    if (socket !== this.#socket) {
      return;
    }
    this.#waitMs = FIRST_WAIT_MS;
    this.#watch(socket);
    if (typeof data === "string") {
      const message = JSON.parse(data);
      this.#handlers[message.type]?.(message);
      return;
    }
    const length = new DataView(data).getUint32(0);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    this.#unacknowledged.push(head.sequence);
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
    socket.close();
    // Spread out, so that many pages do not come back at the same moment.
    const waitMs = this.#waitMs * (0.75 + Math.random() / 2);
    this.#waitMs = Math.min(this.#waitMs * 2, LONGEST_WAIT_MS);
    this.#retry = setTimeout(() => this.open(), waitMs);
    this.#handlers.lost(waitMs);
  }
}
