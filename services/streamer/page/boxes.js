// Draws the newest detections over the picture, on a canvas of their own that changes only when they do.

const COLOURS = ["#4cc9f0", "#ffd166", "#80ed99", "#ff8fa3", "#c8b6ff", "#ffb347", "#5eead4", "#f9f871"];
const LARGEST_RATIO = 2;

// The same colour for the same label, in every frame.
export function colourOf(label) {
  let hash = 0;
  for (const letter of label) {
    hash = (hash * 31 + letter.codePointAt(0)) >>> 0;
  }
  return COLOURS[hash % COLOURS.length];
}

export class Boxes {
  visible = true;
  #canvas;
  #context;
  #view;
  #picture;
  #found = null;
  #requested = false;

  constructor(canvas, picture, view) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#picture = picture;
    this.#view = view;
  }

  // Show a detections message, or nothing when it is null.
  show(found) {
    this.#found = found;
    this.redraw();
  }

  redraw() {
    if (!this.#requested) {
      this.#requested = true;
      requestAnimationFrame(() => this.#draw());
    }
  }

  #draw() {
    this.#requested = false;
    const objects = this.visible ? this.#found?.objects ?? [] : [];
    this.#canvas.hidden = objects.length === 0;
    if (this.#canvas.hidden) {
      return;
    }
    const clip = this.#fitCanvas();
    const context = this.#context;
    context.clearRect(0, 0, clip.width, clip.height);
    context.lineWidth = 2;
    context.font = "600 12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const toScreen = (this.#view.scale * this.#picture.width) / this.#found.full_width;
    const labels = [];
    for (const object of objects) {
      const box = {
        x: object.x * toScreen + this.#view.x - clip.left,
        y: object.y * toScreen + this.#view.y - clip.top,
        width: object.width * toScreen,
        height: object.height * toScreen,
      };
      context.strokeStyle = colourOf(object.label);
      context.strokeRect(box.x, box.y, box.width, box.height);
      labels.push([object, box]);
    }
    // After all boxes, so that none crosses a label.
    for (const [object, box] of labels) {
      this.#label(object, box, clip);
    }
  }

  #label(object, box, clip) {
    const track = object.track ? ` #${object.track}` : "";
    const text = `${object.label}${track} ${Math.round(object.score * 100)}%`;
    const context = this.#context;
    const width = context.measureText(text).width + 10;
    const x = Math.min(Math.max(box.x - 1, 0), Math.max(clip.width - width, 0));
    const y = box.y >= 17 ? box.y - 17 : Math.min(box.y + box.height + 1, clip.height - 16);
    if (box.x + box.width < 0 || box.x > clip.width || box.y + box.height < 0 || box.y > clip.height) {
      return;
    }
    context.fillStyle = colourOf(object.label);
    context.fillRect(x, y, width, 16);
    context.fillStyle = "#0b0e12";
    context.fillText(text, x + 5, y + 8.5);
  }

  // Lay the canvas over the part of the picture that is in sight, and no more: a larger one costs the compositor time.
  #fitCanvas() {
    const view = this.#view;
    const left = Math.floor(Math.max(view.x, 0));
    const top = Math.floor(Math.max(view.y - 18, 0));
    const right = Math.min(view.x + this.#picture.width * view.scale, view.stageWidth);
    const bottom = Math.min(view.y + this.#picture.height * view.scale + 18, view.stageHeight);
    const clip = { left, top, width: Math.ceil(right - left), height: Math.ceil(bottom - top) };
    const ratio = Math.min(window.devicePixelRatio || 1, LARGEST_RATIO);
    const width = Math.round(clip.width * ratio);
    const height = Math.round(clip.height * ratio);
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      this.#canvas.width = width;
      this.#canvas.height = height;
      this.#canvas.style.width = `${clip.width}px`;
      this.#canvas.style.height = `${clip.height}px`;
    }
    this.#canvas.style.transform = `translate(${clip.left}px, ${clip.top}px)`;
    this.#context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return clip;
  }
}
