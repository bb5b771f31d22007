// Connects the parts of the page.

import { Boxes, colourOf } from "./boxes.js";
import { Clock } from "./clock.js";
import { Connection } from "./connection.js";
import { Meters } from "./meters.js";
import { PictureStream } from "./mjpeg.js";
import { Motion } from "./motion.js";
import { Overview } from "./overview.js";
import { Picture } from "./picture.js";
import { missing, pictureState } from "./status.js";
import { View } from "./view.js";

// Interval of the bar's ages, which grow without messages.
const REFRESH_MS = 200;
// Shortest interval between updates of the bar's figures; the boxes are updated with each picture.
const LIST_MS = 120;
// Interval of the status requests while pictures arrive by MJPEG.
const ASK_MS = 2000;
// Number of failed attempts, while the server answers other requests, after which the WebSocket counts as blocked.
const REFUSALS = 3;
// Interval of the attempts to open the WebSocket meanwhile.
const TRY_WEBSOCKET_MS = 30000;
// Time for which the bars of a full screen stay after the pointer has moved.
const BARS_MS = 3000;
// A reload that brings no other files must not be repeated at once.
const RELOAD_AT_MOST_EVERY_MS = 60000;

const element = (id) => document.getElementById(id);
const stage = element("stage");
const pictureCanvas = element("picture");
const meters = new Meters();
const clock = new Clock();
const motion = new Motion();
const hiddenKinds = new Set();

let server = null;
let connected = false;
let attempted = false;
let refusal = "";
let hindrance = ""; // why the server refuses this page's WebSocket
let version = null; // of the server's files when this page was opened
let marked = { objects: [], seenAt: null };
let listedAt = 0;

const view = new View(stage, pictureCanvas, () => {
  element("zoom").textContent = `${view.zoom.toFixed(1)}×`;
  boxes.redraw();
  overview.redraw();
});
const boxes = new Boxes(element("overlay"), view);
const overview = new Overview(element("overview"), pictureCanvas, view);
const picture = new Picture(pictureCanvas, (head, drawn) => {
  if (drawn) {
    view.setSize(head.full_width, head.full_height);
    meters.count(head, clock.since(head.captured_ms));
    mark();
    if (performance.now() - listedAt > LIST_MS) {
      list();
    }
    overview.redraw(false);
  }
  connection.acknowledge(head.sequence);
  // Show the end of a stale state with the picture that ends it, not up to REFRESH_MS later.
  if (stage.classList.contains("stale")) {
    refresh();
  }
});
const connection = new Connection(clock, {
  frame: (head, jpeg) => picture.show(head, jpeg),
  detections: (message) => motion.add(message),
  state: (message) => {
    // The WebSocket works, so a second stream of pictures would only take the line from it.
    fallback.stop();
    takeState(message);
  },
  lost: () => {
    if (!fallback.running) {
      lose();
      askWhy();
    } else {
      connection.postpone(TRY_WEBSOCKET_MS);
    }
  },
});
const fallback = new PictureStream(
  clock,
  (head, jpeg) => picture.show(head, jpeg),
  (head) => server !== null && clock.since(head.captured_ms) > server.stale_after_ms,
);

function takeState(message) {
  const changed = server?.state !== message.state || !connected;
  server = message;
  connected = true;
  attempted = true;
  refusal = "";
  version ??= message.page_version;
  if (message.page_version !== version) {
    reload();
  }
  if (changed) {
    refresh();
  }
}

function lose() {
  connected = false;
  attempted = true;
  meters.restart();
  motion.clear(); // the old boxes must not appear on the first picture of the next connection
  refresh();
}

// The server's files differ from this page's, so reload it.
function reload() {
  const last = Number(sessionStorage.getItem("reloaded") ?? -Infinity);
  if (Date.now() - last > RELOAD_AT_MOST_EVERY_MS) {
    sessionStorage.setItem("reloaded", Date.now());
    location.reload();
  }
}

// Requests the status, because a rejected WebSocket gives no reason but another request does. Returns it, or null.
async function askWhy() {
  try {
    const answer = await fetch(new URL("api/status", document.baseURI), { cache: "no-store" });
    if (!answer.ok) {
      // The server's rejections are one sentence; a proxy's errors are pages.
      const isOurs = answer.headers.get("Content-Type")?.startsWith("text/plain");
      refusal = isOurs ? (await answer.text()).trim() : "";
      return refresh();
    }
    const { viewers, page, refusals } = await answer.json();
    hindrance = refusals.find(({ origin }) => origin === location.origin)?.reason ?? "";
    // If all places are taken, MJPEG would be refused as well.
    const full = viewers.websocket + viewers.mjpeg >= viewers.max;
    refusal = full ? `all ${viewers.max} places are taken` : "";
    if (!full && connection.refusals >= REFUSALS && !fallback.running) {
      connection.postpone(TRY_WEBSOCKET_MS);
      fallback.start();
      takeState(page);
    } else if (fallback.running) {
      takeState(page);
    }
  } catch {
    refusal = "";
    if (fallback.running) {
      connected = false;
    }
  }
  refresh();
}

function pictureAgeMs() {
  return picture.shown === null ? null : (clock.since(picture.shown.captured_ms) ?? NaN);
}

// Draws the boxes of the displayed picture.
function mark() {
  const isShown = picture.shown !== null && ["live", "delayed"].includes(element("state").dataset.state);
  marked = isShown
    ? motion.at(picture.shown.epoch, picture.shown.captured_ms, server?.boxes_max_age_ms ?? 0)
    : { objects: [], seenAt: null };
  boxes.show(marked.objects.filter(({ label }) => !hiddenKinds.has(label)));
}

// Shows the number of drawn boxes in the bar.
function list() {
  listedAt = performance.now();
  listFound();
  const ageMs = marked.seenAt === null ? null : clock.since(marked.seenAt);
  write("objects", marked.seenAt === null ? "–" : marked.objects.length);
  write("age", ageMs === null ? "–" : `${Math.round(ageMs)} ms`);
}

function refresh() {
  const ageMs = pictureAgeMs();
  const [name, text, notice] = pictureState({ connected, attempted, refusal, server, ageMs });
  write("state", text);
  if (element("state").dataset.state !== name) {
    element("state").dataset.state = name;
    stage.classList.toggle("stale", name !== "live" && name !== "delayed");
  }
  write("notice", notice);
  element("notice").hidden = notice === "";
  mark();
  list();
  const phrases = missing(connected ? server : null, clock);
  if (fallback.running) {
    const why = hindrance || "the path to the server blocks WebSocket upgrades";
    phrases.unshift(`pictures by MJPEG, without boxes: ${why}`);
  }
  write("missing", phrases.join(" · "));
  write("fps", meters.fps.toFixed(1));
  const latencyMs = meters.latencyMs;
  write("latency", latencyMs === null ? "–" : `${Math.round(latencyMs)} ms`);
  element("latency").dataset.state = latencyMs === null || server === null ? "" : levelOf(latencyMs);
  write("skipped", picture.shown === null ? "–" : meters.skipped);
  const shown = picture.shown;
  write("time", shown?.captured_wall_ms ? timeOf(shown.captured_wall_ms) : "–");
  element("level").hidden = !shown?.level;
  if (shown?.level) {
    write("level", `slow line: ${shown.quality ?? "smaller pictures"}`);
  }
}

function levelOf(ageMs) {
  return ageMs < server.delayed_after_ms ? "live" : ageMs < server.stale_after_ms ? "delayed" : "stale";
}

function timeOf(wallMs) {
  return new Date(wallMs).toLocaleTimeString([], { hour12: false });
}

// Changes the document only if necessary, because each change costs a layout.
function write(id, value) {
  const text = String(value);
  if (element(id).textContent !== text) {
    element(id).textContent = text;
  }
}

function listFound() {
  const counts = new Map();
  for (const { label } of marked.objects) {
    counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  // A hidden kind keeps its button, by which it is shown again, even while none is found.
  for (const label of hiddenKinds) {
    counts.set(label, counts.get(label) ?? 0);
  }
  const kinds = [...counts].sort(([a], [b]) => a.localeCompare(b));
  const key = JSON.stringify([kinds, [...hiddenKinds]]);
  if (listFound.key === key) {
    return;
  }
  listFound.key = key;
  // The buttons are replaced, so return the focus to the one with the same label.
  const focused = document.activeElement?.dataset?.label;
  element("found").replaceChildren(
    ...kinds.map(([label, count]) => {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.dataset.label = label;
      chip.textContent = `${count} ${label}`;
      chip.style.borderLeftColor = colourOf(label);
      chip.setAttribute("aria-pressed", String(!hiddenKinds.has(label)));
      chip.addEventListener("click", () => toggleKind(label));
      return chip;
    }),
  );
  if (focused !== undefined) {
    element("found")
      .querySelector(`[data-label="${CSS.escape(focused)}"]`)
      ?.focus();
  }
}

function toggleKind(label) {
  if (!hiddenKinds.delete(label)) {
    hiddenKinds.add(label);
  }
  mark();
  list();
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

// In full screen the bars show for a while after the pointer has moved.
function showBars() {
  document.body.classList.add("awake");
  clearTimeout(showBars.timer);
  showBars.timer = setTimeout(() => document.body.classList.remove("awake"), BARS_MS);
}

element("boxes").addEventListener("click", toggleBoxes);
element("in").addEventListener("click", () => view.key("+"));
element("out").addEventListener("click", () => view.key("-"));
element("reset").addEventListener("click", () => view.reset());
element("fill").addEventListener("click", () => view.fill());
element("fullscreen").addEventListener("click", toggleFullScreen);
for (const name of ["pointermove", "pointerdown", "keydown"]) {
  document.addEventListener(name, showBars);
}
document.addEventListener("keydown", (event) => {
  // Leave the browser's own shortcuts alone.
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
setInterval(() => fallback.running && askWhy(), ASK_MS);
connection.open();
