// Places the frame on the stage: initially fitted, or at full height if fitting would make it a ribbon; then zoomed and
// moved by wheel, drag, pinch and keys. The frame has its published size, regardless of the size of the pictures.

// CSS pixels for one of the frame's.
const LARGEST_SCALE = 4;
// Factor of one press of the keys and buttons that zoom.
const STEP = 1.3;
// Distance of one press of an arrow key.
const MOVE_PX = 60;
// Aspect ratio of the stage up to which a panorama fills the height.
const TALL = 1.2;

export class View {
  // Size of the frame in its own pixels.
  width = 0;
  height = 0;
  // Place of the frame on the stage, in CSS pixels, and its scale: CSS pixels for one of its own.
  x = 0;
  y = 0;
  scale = 1;
  #stage;
  #canvas;
  #onChange;
  #zoom = 1;
  #filled = false;
  // The frame's point in the middle of the stage.
  #middle = [0, 0];
  #pointers = new Map();

  constructor(stage, canvas, onChange) {
    this.#stage = stage;
    this.#canvas = canvas;
    this.#onChange = onChange;
    new ResizeObserver(() => this.#resize()).observe(stage);
    stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    stage.addEventListener("dblclick", () => this.reset());
    stage.addEventListener("pointerdown", (event) => this.#press(event));
    stage.addEventListener("pointermove", (event) => this.#drag(event));
    for (const event of ["pointerup", "pointercancel", "lostpointercapture"]) {
      stage.addEventListener(event, (lifted) => this.#lift(lifted));
    }
  }

  get zoom() {
    return this.#zoom;
  }

  get stageWidth() {
    return this.#stage.clientWidth;
  }

  get stageHeight() {
    return this.#stage.clientHeight;
  }

  // Whether the whole frame is visible.
  get showsAll() {
    return this.width * this.scale <= this.stageWidth + 1 && this.height * this.scale <= this.stageHeight + 1;
  }

  // Called when a picture of a frame of this size was drawn on the canvas, whose size may have changed with its level.
  setSize(width, height) {
    if (width !== this.width || height !== this.height) {
      this.width = width;
      this.height = height;
      this.#begin();
    } else {
      this.#transform();
    }
  }

  // Show all of the frame.
  reset() {
    this.#zoom = 1;
    this.#filled = false;
    this.#place();
  }

  // Use all of the stage's height, or all of its width for a frame that is narrower.
  fill() {
    const scale = Math.max(this.stageWidth / this.width, this.stageHeight / this.height);
    this.zoomBy(Math.min(scale, LARGEST_SCALE) / this.scale);
    this.#filled = true;
  }

  // Centre a point of the frame on the stage.
  centre(x, y) {
    this.x = this.stageWidth / 2 - x * this.scale;
    this.y = this.stageHeight / 2 - y * this.scale;
    this.#place();
  }

  // Zoom by a factor around the point (x, y), by default the middle of the stage.
  zoomBy(factor, x = this.stageWidth / 2, y = this.stageHeight / 2) {
    if (!this.width) {
      return;
    }
    const fit = this.#fit();
    const zoom = Math.min(Math.max(this.#zoom * factor, 1), Math.max(LARGEST_SCALE / fit, 1));
    const ratio = (fit * zoom) / this.scale;
    this.#zoom = zoom;
    this.#filled = false;
    this.x = x - (x - this.x) * ratio;
    this.y = y - (y - this.y) * ratio;
    this.#place();
  }

  // Handle a key. Return true if the view uses it.
  key(name) {
    const moves = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (name in moves) {
      this.#move(moves[name][0] * MOVE_PX, moves[name][1] * MOVE_PX);
    } else if (name === "+" || name === "=") {
      this.zoomBy(STEP);
    } else if (name === "-") {
      this.zoomBy(1 / STEP);
    } else if (name === "0") {
      this.reset();
    } else {
      return false;
    }
    return true;
  }

  #fit() {
    return Math.min(this.stageWidth / this.width, this.stageHeight / this.height);
  }

  #begin() {
    this.reset();
    if (this.stageWidth < this.stageHeight * TALL && this.width > this.height * TALL) {
      this.fill();
    }
  }

  // Keep the same point in the middle, and keep the height filled if it was.
  #resize() {
    if (!this.width) {
      return;
    }
    const [x, y] = this.#middle;
    if (this.#filled) {
      this.#place();
      this.fill();
    }
    this.scale = this.#fit() * this.#zoom;
    this.centre(x, y);
  }

  #move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.#place();
  }

  #place() {
    if (!this.width || !this.stageWidth) {
      return;
    }
    this.scale = this.#fit() * this.#zoom;
    this.x = inside(this.x, this.width * this.scale, this.stageWidth);
    this.y = inside(this.y, this.height * this.scale, this.stageHeight);
    this.#middle = [(this.stageWidth / 2 - this.x) / this.scale, (this.stageHeight / 2 - this.y) / this.scale];
    this.#transform();
    this.#stage.classList.toggle("close", this.scale > 1.5); // shows single pixels instead of blurring them
    this.#onChange();
  }

  #transform() {
    const scale = (this.scale * this.width) / this.#canvas.width;
    this.#canvas.style.transform = `translate(${this.x}px, ${this.y}px) scale(${scale})`;
  }

  #wheel(event) {
    event.preventDefault();
    // Some mice and browsers count lines instead of pixels.
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
    const box = this.#stage.getBoundingClientRect();
    this.zoomBy(Math.exp(-event.deltaY * lines * 0.0015), event.clientX - box.left, event.clientY - box.top);
  }

  #press(event) {
    if (event.button !== 0) {
      return;
    }
    this.#pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.#stage.setPointerCapture(event.pointerId); // a drag goes on outside of the stage
    this.#stage.classList.add("dragging");
  }

  #drag(event) {
    const before = this.#pointers.get(event.pointerId);
    if (!before) {
      return;
    }
    const now = { x: event.clientX, y: event.clientY };
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.#pointers.set(event.pointerId, now);
    if (other) {
      const box = this.#stage.getBoundingClientRect();
      const factor = distance(now, other) / Math.max(distance(before, other), 1);
      this.zoomBy(factor, (now.x + other.x) / 2 - box.left, (now.y + other.y) / 2 - box.top);
    }
    // With two fingers, each of the two events moves the picture by half of its distance.
    const share = other ? 2 : 1;
    this.#move((now.x - before.x) / share, (now.y - before.y) / share);
  }

  #lift(event) {
    this.#pointers.delete(event.pointerId);
    this.#stage.classList.toggle("dragging", this.#pointers.size > 0);
  }
}

// Centres the frame if it is smaller than the stage; otherwise avoids a gap at either edge.
function inside(start, length, room) {
  return length <= room ? (room - length) / 2 : Math.min(Math.max(start, room - length), 0);
}

function distance(a, b) {
  return Math.hypot(a.x - b.x, a.y - b.y);
}
