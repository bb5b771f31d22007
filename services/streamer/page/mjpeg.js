// Pictures over plain HTTP, for networks that block WebSockets: /stream.mjpg, read part by part.

const END_OF_HEAD = "\r\n\r\n";
const RETRY_MS = 1000;
// A head that is longer is not one of this server.
const LARGEST_HEAD = 4096;
// Index of the smallest pictures, as in encode.py.
const LAST_LEVEL = 3;
// Time without delay after which larger pictures are tried again.
const STEADY_MS = 60000;

export class PictureStream {
  #clock;
  #onFrame;
  #isLate;
  #abort = null;
  #retry = 0;
  #level = 0;
  #steadySince = 0;

  // onFrame(head, jpeg): a picture has arrived. isLate(head): it is too old, so drop the connection with the data in flight.
  constructor(clock, onFrame, isLate) {
    this.#clock = clock;
    this.#onFrame = onFrame;
    this.#isLate = isLate;
  }

  get running() {
    return this.#abort !== null;
  }

  start() {
    if (!this.running) {
      this.#abort = new AbortController();
      this.#run(this.#abort);
    }
  }

  stop() {
    clearTimeout(this.#retry);
    this.#abort?.abort();
    this.#abort = null;
  }

  async #run(abort) {
    try {
      await this.#read(abort);
    } catch (error) {
      if (!abort.signal.aborted) {
        console.warn(`the pictures ended: ${error}`);
      }
    }
    if (this.#abort === abort) {
      this.#retry = setTimeout(() => this.#again(), RETRY_MS);
    }
  }

  #again() {
    this.#abort?.abort();
    this.#abort = new AbortController();
    this.#run(this.#abort);
  }

  async #read(abort) {
    const openedAt = performance.now();
    this.#steadySince = openedAt;
    const address = new URL(`stream.mjpg?level=${this.#level}`, document.baseURI);
    const answer = await fetch(address, { signal: abort.signal, cache: "no-store" });
    if (!answer.ok) {
      throw new Error(await answer.text());
    }
    const received = Number(answer.headers.get("X-Received-Ms"));
    for await (const [headers, jpeg] of parts(answer.body.getReader())) {
      // The page shows the reason by itself, in large letters.
      if (headers["x-no-signal"] !== undefined) {
        continue;
      }
      const [width, height] = headers["x-full-size"].split("x").map(Number);
      const head = {
        epoch: headers["x-epoch"],
        sequence: Number(headers["x-sequence"]),
        captured_ms: Number(headers["x-captured-ms"]),
        captured_wall_ms: Number(headers["x-captured-wall-ms"]),
        full_width: width,
        full_height: height,
        level: Number(headers["x-level"]),
        latency_ms: null,
      };
      this.#clock.hear({ sent_ms: Number(headers["x-sent-ms"]), received_ms: received, echo: null }, openedAt);
      this.#onFrame(head, jpeg);
      if (this.#isLate(head)) {
        // Buffers along the path are full of older pictures, and closing this connection discards them.
        this.#level = Math.min(this.#level + 1, LAST_LEVEL);
        this.#again();
        return;
      }
      if (this.#level > 0 && performance.now() - this.#steadySince > STEADY_MS) {
        this.#level -= 1;
        this.#again();
        return;
      }
    }
  }
}

// Yields each part's headers, by lower-case name, and its body. The server declares the length of every part, so the
// boundary is not searched for in the body: it precedes the next part's headers, and is skipped as it has no colon.
async function* parts(reader) {
  let held = new Uint8Array(0);
  const more = async () => {
    const { done, value } = await reader.read();
    if (done) {
      return false;
    }
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
    return true;
  };
  while (true) {
    // A part arrives in pieces of any size, and a piece may hold parts of two.
    let end = -1;
    while ((end = find(held, END_OF_HEAD)) < 0) {
      if (held.length > LARGEST_HEAD) {
        throw new Error("a part without an end of its head");
      }
      if (!(await more())) {
        return;
      }
    }
    const lines = new TextDecoder().decode(held.subarray(0, end)).split("\r\n");
    const headers = Object.fromEntries(
      lines
        .filter((line) => line.includes(": "))
        .map((line) => {
          const [name, ...value] = line.split(": ");
          return [name.toLowerCase(), value.join(": ")];
        }),
    );
    const start = end + END_OF_HEAD.length;
    const stop = start + Number(headers["content-length"]);
    if (!Number.isSafeInteger(stop)) {
      throw new Error("a part without its length");
    }
    while (held.length < stop) {
      if (!(await more())) {
        return;
      }
    }
    yield [headers, held.slice(start, stop)];
    held = held.slice(stop);
  }
}

function find(bytes, text) {
  const limit = Math.min(bytes.length, LARGEST_HEAD + text.length) - text.length;
  for (let at = 0; at <= limit; at++) {
    let length = 0;
    while (length < text.length && bytes[at + length] === text.charCodeAt(length)) {
      length++;
    }
    if (length === text.length) {
      return at;
    }
  }
  return -1;
}
