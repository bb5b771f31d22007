// A strip with the whole panorama and a frame around the visible part; shown while only a part is visible.

const LARGEST_WIDTH = 640;
const LARGEST_HEIGHT = 120;
const MARGIN = 10;
const LARGEST_RATIO = 2;
// Shortest interval between two drawings for new pictures; changes of the view are drawn at once.
const REDRAW_MS = 200;

export class Overview {
  #canvas;
  #context;
  #picture;
  #view;
  #drawnAt = 0;

  constructor(canvas, picture, view) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.#picture = picture;
    this.#view = view;
    for (const name of ["pointerdown", "pointermove"]) {
      canvas.addEventListener(name, (event) => this.#point(event));
    }
    // A double click on the stage resets the view.
    canvas.addEventListener("dblclick", (event) => event.stopPropagation());
  }

  // Called when the view changed or a picture was drawn. The strip is redrawn at a lower rate.
  redraw(now = true) {
    const view = this.#view;
    this.#canvas.hidden = !view.width || view.showsAll;
    if (this.#canvas.hidden || (!now && performance.now() - this.#drawnAt < REDRAW_MS)) {
      return;
    }
    this.#drawnAt = performance.now();
    const room = Math.min(view.stageWidth - 2 * MARGIN, LARGEST_WIDTH);
    const scale = Math.min(room / view.width, LARGEST_HEIGHT / view.height);
    const width = Math.round(view.width * scale);
    const height = Math.round(view.height * scale);
    const ratio = Math.min(window.devicePixelRatio || 1, LARGEST_RATIO);
    if (this.#canvas.width !== Math.round(width * ratio) || this.#canvas.height !== Math.round(height * ratio)) {
      this.#canvas.width = Math.round(width * ratio);
      this.#canvas.height = Math.round(height * ratio);
      this.#canvas.style.width = `${width}px`;
      this.#canvas.style.height = `${height}px`;
    }
    const context = this.#context;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.drawImage(this.#picture, 0, 0, width, height);
    const left = Math.max(-view.x / view.scale, 0) * scale;
    const top = Math.max(-view.y / view.scale, 0) * scale;
    const seenWidth = Math.min(view.stageWidth / view.scale, view.width) * scale;
    const seenHeight = Math.min(view.stageHeight / view.scale, view.height) * scale;
    context.fillStyle = "rgb(0 0 0 / 45%)";
    context.fillRect(0, 0, left, height);
    context.fillRect(left + seenWidth, 0, width - left - seenWidth, height);
    context.fillRect(left, 0, seenWidth, top);
    context.fillRect(left, top + seenHeight, seenWidth, height - top - seenHeight);
    context.strokeStyle = "#fff";
    context.lineWidth = 2;
    context.strokeRect(left + 1, top + 1, seenWidth - 2, seenHeight - 2);
  }

  #point(event) {
    event.stopPropagation();
    if (event.type === "pointerdown") {
      this.#canvas.setPointerCapture(event.pointerId);
    }
    if (event.buttons & 1) {
      const box = this.#canvas.getBoundingClientRect();
      const view = this.#view;
      view.centre(
        ((event.clientX - box.left) / box.width) * view.width,
        ((event.clientY - box.top) / box.height) * view.height,
      );
    }
  }
}
