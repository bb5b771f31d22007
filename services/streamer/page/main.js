// Joins the parts of the page.

import { Boxes, colourOf } from "./boxes.js";
import { Connection } from "./connection.js";
import { Meters } from "./meters.js";
import { Motion } from "./motion.js";
import { Picture } from "./picture.js";
import { View } from "./view.js";

const REFRESH_MS = 500;
// Without a frame for so long the picture no longer passes for live, whatever the server says.
const STALE_MS = 3000;

const element = (id) => document.getElementById(id);
const stage = element("stage");
const pictureCanvas = element("picture");
const meters = new Meters();

let server = null;
let retryAt = 0;
let full = null;
let found = null;
let foundAt = 0;
let said = "";

const view = new View(stage, pictureCanvas, () => {
  element("zoom").textContent = `${view.zoom.toFixed(1)}×`;
  boxes.redraw();
});
const boxes = new Boxes(element("overlay"), pictureCanvas, view);
const motion = new Motion();
const picture = new Picture(
  pictureCanvas,
  (head, drawn) => {
    if (drawn) {
      meters.count(head);
    }
    connection.acknowledge(head.sequence);
    if (stage.classList.contains("stale")) {
      refresh();
    }
  },
  (width, height) => view.setSize(width, height),
);
const connection = new Connection({
  frame: (head, jpeg) => picture.show(head, jpeg),
  detections: (message) => {
    found = message;
    foundAt = performance.now() - message.age_ms;
    boxes.show(motion.forward(found, meters.latencyMs ?? 0));
    listFound();
  },
  state: (message) => {
    const changed = server?.live !== message.live;
    server = message;
    full = null;
    if (changed) {
      refresh();
    }
  },
  lost: (waitMs) => {
    server = null;
    retryAt = performance.now() + waitMs;
    meters.restart();
    refresh();
    askWhetherFull();
  },
});

// A refused WebSocket does not tell why; the status does.
async function askWhetherFull() {
  try {
    const { viewers } = await (await fetch("/api/status")).json();
    full = viewers.websocket + viewers.mjpeg >= viewers.max ? viewers.max : null;
  } catch {
    full = null;
  }
  refresh();
}

function state() {
  if (server === null) {
    if (!retryAt) {
      return ["connecting", "connecting"];
    }
    if (full !== null) {
      return ["lost", `all ${full} places are taken`];
    }
    return ["lost", "connection lost, trying again"];
  }
  if (!server.live) {
    return ["waiting", `waiting for the stream: ${server.reason}`];
  }
  if (meters.drawnAt === null) {
    return ["waiting", "waiting for the first picture"];
  }
  const silentMs = performance.now() - meters.drawnAt;
  return silentMs > STALE_MS ? ["waiting", `no picture for ${Math.floor(silentMs / 1000)} s`] : ["live", "live"];
}

function refresh() {
  const [name, text] = state();
  if (text !== said) {
    said = text;
    element("state").textContent = name === "waiting" ? "waiting" : text;
    element("state").dataset.state = name;
    element("notice").textContent = text;
    element("notice").hidden = name === "live";
    stage.classList.toggle("stale", name !== "live");
  }
  const now = performance.now();
  const ageMs = found ? now - foundAt : 0;
  if (found && (ageMs > (server?.boxes_max_age_ms ?? 0) || name === "lost")) {
    found = null;
    boxes.show(null);
    listFound();
  }
  const latencyMs = meters.latencyMs;
  write("fps", meters.fps.toFixed(1));
  write("latency", latencyMs === null ? "–" : `${Math.round(latencyMs)} ms`);
  write("skipped", meters.drawnAt === null ? "–" : meters.skipped);
  write("objects", found ? found.objects.length : "–");
  write("age", found ? `${Math.round(ageMs)} ms` : "–");
}

// Touch the document only where something has changed: each change costs a layout.
function write(id, value) {
  const text = String(value);
  if (element(id).textContent !== text) {
    element(id).textContent = text;
  }
}

function listFound() {
  const counts = new Map();
  for (const { label } of found?.objects ?? []) {
    counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  const text = [...counts].sort(([a], [b]) => a.localeCompare(b));
  const key = JSON.stringify(text);
  if (listFound.key === key) {
    return;
  }
  listFound.key = key;
  element("found").replaceChildren(
    ...text.map(([label, count]) => {
      const chip = document.createElement("span");
      chip.textContent = `${count} ${label}`;
      chip.style.borderLeftColor = colourOf(label);
      return chip;
    }),
  );
}

function toggleBoxes() {
  boxes.visible = !boxes.visible;
  element("boxes").setAttribute("aria-pressed", String(boxes.visible));
  boxes.redraw();
}

async function toggleFullScreen() {
  try {
    await (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen());
  } catch (error) {
    console.warn(`no full screen: ${error}`);
  }
}

element("boxes").addEventListener("click", toggleBoxes);
element("in").addEventListener("click", () => view.key("+"));
element("out").addEventListener("click", () => view.key("-"));
element("reset").addEventListener("click", () => view.reset());
element("fullscreen").addEventListener("click", toggleFullScreen);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "b") {
    toggleBoxes();
  } else if (key === "f") {
    toggleFullScreen();
  } else if (view.key(key)) {
    event.preventDefault();
  }
});

setInterval(refresh, REFRESH_MS);
connection.open();
