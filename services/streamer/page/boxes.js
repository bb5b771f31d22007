// Draws the objects over the picture, on a separate canvas that is redrawn only when they change.

// Bright enough for dark text on them; the first are reserved for the most frequent labels.
const COLOURS = ["#ffb347", "#b9a7ff", "#4cc9f0", "#ffe066", "#80ed99", "#ff8fa3", "#5eead4", "#e9c9ff"];
const FREQUENT = ["person", "car", "bus", "truck", "bicycle", "motorcycle", "traffic light", "dog"];
// Largest number of canvas pixels for one CSS pixel, in each direction.
const LARGEST_RATIO = 2;
const LABEL_HEIGHT = 15;
// Room for the labels of boxes at the picture's edge.
const MARGIN = LABEL_HEIGHT + 2;
// Least size on the screen at which a box has room for the track's number and the score.
const DETAILED_PX = 120;

// The same colour for the same label, in every frame.
export function colourOf(label) {
  const place = FREQUENT.indexOf(label);
  if (place >= 0) {
    return COLOURS[place];
  }
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
  #objects = [];
  // Fingerprint of the drawn objects, to detect changes.
  #drawn = "[]";
  #requested = false;

  constructor(canvas, view) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#view = view;
  }

  // Show objects, in pixels of the frame. They are drawn immediately, to be composited together with a picture of the same
  // animation frame, and only if one looks different, because each change of the overlay costs time.
  show(objects) {
    this.#objects = objects;
    const drawn = this.#look(objects);
    if (drawn !== this.#drawn) {
      this.#drawn = drawn;
      this.#draw();
    }
  }

  // Draw in the next animation frame, once however often the view changes until then.
  redraw() {
    if (!this.#requested) {
      this.#requested = true;
      requestAnimationFrame(() => this.#draw());
    }
  }

  // The objects' appearance on the screen, to half a pixel and a twentieth of the opacity. A change of the view redraws them
  // in any case.
  #look(objects) {
    const halves = (length) => Math.round(2 * length * this.#view.scale);
    return JSON.stringify(
      objects.map(({ label, sub_class: more, track, score, opacity, x, y, width, height }) => [
        ...[label, more, track, Math.round(score * 100), Math.round(opacity * 20)],
        ...[x, y, width, height].map(halves),
      ]),
    );
  }

  #draw() {
    this.#requested = false;
    const objects = this.visible ? this.#objects : [];
    // A hidden canvas is not composited at all.
    this.#canvas.hidden = objects.length === 0;
    if (this.#canvas.hidden) {
      return;
    }
    const clip = this.#fitCanvas();
    const context = this.#context;
    context.clearRect(0, 0, clip.width, clip.height);
    context.lineWidth = 2;
    context.font = "600 11px system-ui, sans-serif";
    context.textBaseline = "middle";
    const toScreen = this.#view.scale;
    const visible = [];
    for (const object of objects) {
      const box = {
        x: object.x * toScreen + this.#view.x - clip.left,
        y: object.y * toScreen + this.#view.y - clip.top,
        width: object.width * toScreen,
        height: object.height * toScreen,
      };
      if (overlap(box, { x: 0, y: 0, width: clip.width, height: clip.height })) {
        context.globalAlpha = object.opacity;
        context.strokeStyle = colourOf(object.label);
        context.strokeRect(box.x, box.y, box.width, box.height);
        visible.push([object, box]);
      }
    }
    // Draw labels after all boxes, so that no box crosses a label. Objects are sorted by score, so the best get their place.
    const taken = [];
    for (const [object, box] of visible) {
      this.#label(object, box, clip, taken);
    }
  }

  // Draw the full label if it covers no other, otherwise a shorter one, otherwise none: zooming in makes room.
  #label(object, box, clip, taken) {
    const context = this.#context;
    const more = object.sub_class ? ` · ${object.sub_class}` : "";
    const texts = more ? [object.label + more, object.label] : [object.label];
    if (Math.max(box.width, box.height) > DETAILED_PX) {
      const name = (object.track ? `${object.label} ${object.track}` : object.label) + more;
      texts.unshift(`${name} · ${Math.round(object.score * 100)}%`, name);
    }
    context.globalAlpha = object.opacity;
    for (const text of texts) {
      const width = Math.ceil(context.measureText(text).width) + 10;
      const x = Math.round(Math.min(Math.max(box.x - 1, 0), Math.max(clip.width - width, 0)));
      for (const top of [box.y - LABEL_HEIGHT - 1, box.y + box.height + 1]) {
        const y = Math.round(Math.min(Math.max(top, 0), clip.height - LABEL_HEIGHT));
        const place = { x, y, width, height: LABEL_HEIGHT };
        if (!taken.some((other) => overlap(place, other))) {
          taken.push(place);
          context.fillStyle = colourOf(object.label);
          context.fillRect(x, y, width, LABEL_HEIGHT);
          context.fillStyle = "#0b0e12";
          context.fillText(text, x + 5, y + LABEL_HEIGHT / 2 + 0.5);
          return;
        }
      }
    }
  }

  // Fit the canvas to the visible part of the picture: a larger canvas costs the compositor time.
  #fitCanvas() {
    const view = this.#view;
    const left = Math.floor(Math.max(view.x, 0));
    const top = Math.floor(Math.max(view.y - MARGIN, 0));
    const right = Math.min(view.x + view.width * view.scale, view.stageWidth);
    const bottom = Math.min(view.y + view.height * view.scale + MARGIN, view.stageHeight);
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

function overlap(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}
