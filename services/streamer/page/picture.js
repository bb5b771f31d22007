// Decodes frames off the main thread, and draws the newest at the screen's refresh rate.

export class Picture {
  // Head of the frame that the canvas shows; null before the first.
  shown = null;
  #canvas;
  #context;
  #onDone;
  #arrivals = 0;
  #newestArrival = 0;
  #decoded = null;
  #requested = false;

  // onDone(head, drawn): a frame was drawn, or cannot be decoded. A frame that a newer one replaces is done together with
  // that one, so that a hidden page, which does not draw, requests no frames.
  constructor(canvas, onDone) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.#onDone = onDone;
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
    // Decoding is concurrent, so an older frame may be ready after a newer one.
    if (arrival < this.#newestArrival) {
      bitmap.close();
      return;
    }
    this.#newestArrival = arrival;
    // Free the memory now: a bitmap that is only forgotten stays until the next garbage collection.
    this.#decoded?.bitmap.close();
    this.#decoded = { head, bitmap };
    if (!this.#requested) {
      this.#requested = true;
      requestAnimationFrame(() => this.#draw());
    }
  }

  #draw() {
    this.#requested = false;
    const { head, bitmap } = this.#decoded;
    this.#decoded = null;
    if (this.#canvas.width !== bitmap.width || this.#canvas.height !== bitmap.height) {
      this.#canvas.width = bitmap.width;
      this.#canvas.height = bitmap.height;
    }
    this.#context.drawImage(bitmap, 0, 0);
    bitmap.close();
    this.shown = head;
    this.#onDone(head, true);
  }
}
