// Decodes frames off the main thread and draws the newest at the screen's own pace.

export class Picture {
  #canvas;
  #context;
  #onDone;
  #onSize;
  #arrivals = 0;
  #newestArrival = 0;
  #decoded = null;
  #requested = false;

  // onDone(head, drawn): a frame was drawn, or dropped for a newer one or because it cannot be decoded.
  constructor(canvas, onDone, onSize) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.#onDone = onDone;
    this.#onSize = onSize;
  }

  async show(head, jpeg) {
    const arrival = ++this.#arrivals;
    let bitmap;
    try {
      bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
    } catch (error) {
      console.error(`frame ${head.sequence} cannot be decoded: ${error}`);
      this.#onDone(head, false);
      return;
    }
    if (arrival < this.#newestArrival) {
      bitmap.close();
      this.#onDone(head, false);
      return;
    }
    this.#newestArrival = arrival;
    this.#drop();
    this.#decoded = { head, bitmap };
    if (!this.#requested) {
      this.#requested = true;
      requestAnimationFrame(() => this.#draw());
    }
  }

  #drop() {
    if (this.#decoded) {
      this.#decoded.bitmap.close();
      this.#onDone(this.#decoded.head, false);
      this.#decoded = null;
    }
  }

  #draw() {
    this.#requested = false;
    const { head, bitmap } = this.#decoded;
    this.#decoded = null;
    if (this.#canvas.width !== bitmap.width || this.#canvas.height !== bitmap.height) {
      this.#canvas.width = bitmap.width;
      this.#canvas.height = bitmap.height;
      this.#onSize(bitmap.width, bitmap.height);
    }
    this.#context.drawImage(bitmap, 0, 0);
    bitmap.close();
    this.#onDone(head, true);
  }
}
