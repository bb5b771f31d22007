// Shows the cameras' positions in the panorama and how well they fit, from the stitcher's status and the newest picture.

const ASK_MS = 2000;
// Shortest interval between two pictures.
const PICTURE_MS = 5000;
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#5ab4f0", "#fac878", "#8cdc8c", "#dc96dc", "#dcdc78", "#faa096"];
// Residuals below which neighbours fit well, and from which they do not: the default of stitcher.quality.limit_px.
const FAIR_PX = 1.5;
const POOR_PX = 3;
const NONE = "–";

const element = (id) => document.getElementById(id);
let drawn = "";
let pictureAt = -Infinity;

function svg(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  made.textContent = text;
  return made;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const withUnit = (value, digits, unit) => (isNumber(value) ? `${value.toFixed(digits)}${unit}` : NONE);
const judge = (px) => (!isNumber(px) ? "" : px < FAIR_PX ? "good" : px < POOR_PX ? "warn" : "bad");

// The stitcher is the service that has a calibration.
function stitcherOf(services) {
  return Object.values(services).find(({ details }) => details?.calibration !== undefined);
}

// Merges, for each pair of neighbours, the numbers of the calibration and those of the live pictures.
function pairsOf(calibration) {
  const pairs = new Map();
  for (const pair of calibration.pairs ?? []) {
    pairs.set(pair.cameras.join(" and "), { cameras: pair.cameras, matches: pair.matches, rms_px: pair.rms_px });
  }
  for (const pair of calibration.quality?.pairs ?? []) {
    const name = pair.cameras.join(" and ");
    pairs.set(name, { ...pairs.get(name), ...pair });
  }
  return pairs;
}

function row(cells) {
  const made = document.createElement("tr");
  for (const [index, { text, state = "", prose = false }] of cells.entries()) {
    const cell = document.createElement(index === 0 ? "th" : "td");
    if (index === 0) {
      cell.scope = "row";
    }
    cell.textContent = text;
    cell.dataset.state = state;
    cell.classList.toggle("text", prose);
    made.append(cell);
  }
  return made;
}

function cameraRow(name, camera, calibration) {
  const pose = calibration.cameras?.[name];
  const state = String(camera?.state ?? NONE);
  const isUp = state === "connected";
  const cause = isUp || !camera?.cause || state.includes(camera.cause) ? "" : ` (${camera.cause})`;
  const reason = calibration.reasons?.[name];
  const place = pose ? "placed" : (calibration.unplaced ?? []).includes(name) ? "not placed" : NONE;
  return row([
    { text: name },
    { text: state + cause, state: isUp ? "good" : "bad", prose: !isUp },
    { text: reason ? `${place}: ${reason}` : place, state: place === "not placed" ? "warn" : "", prose: !!reason },
    { text: camera?.clock ?? NONE },
    { text: withUnit(camera?.skew_ms, 0, " ms") },
    { text: withUnit(pose?.yaw_deg, 2, "°") },
    { text: withUnit(pose?.pitch_deg, 2, "°") },
    { text: withUnit(pose?.roll_deg, 2, "°") },
    { text: withUnit(pose?.focal_px, 1, " px") },
    { text: withUnit(pose?.k1, 3, "") },
    { text: withUnit(pose?.rms_px, 2, " px"), state: judge(pose?.rms_px) },
  ]);
}

function pairRow(name, pair) {
  const now = isNumber(pair.residual_px) ? withUnit(pair.residual_px, 2, " px") : (pair.state ?? NONE);
  return row([
    { text: name },
    { text: pair.matches ?? NONE },
    { text: withUnit(pair.rms_px, 2, " px"), state: judge(pair.rms_px) },
    { text: now, state: judge(pair.residual_px) },
    { text: withUnit(pair.drift_px, 2, " px"), state: judge(pair.drift_px) },
    { text: withUnit(pair.parallax_px, 2, " px"), state: judge(pair.parallax_px) },
    { text: pair.patches ?? NONE },
  ]);
}

const bounds = (points) => {
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  return { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
};

function draw(calibration, pairs) {
  const drawing = calibration.drawing;
  element("figure").hidden = !drawing?.width_px;
  if (!drawing?.width_px) {
    return;
  }
  const { width_px: width, height_px: height } = drawing;
  const outlines = new Map(Object.entries(drawing.outlines_px ?? {}));
  const all = bounds([[0, 0], [width, height], ...[...outlines.values()].flat()]);
  const margin = (all.right - all.left) * 0.01;
  const size = (all.right - all.left) / 90; // of the letters, in proportion to the drawing, which is scaled to the window
  const picture = element("drawing").querySelector("image") ?? svg("image", { preserveAspectRatio: "none" });
  const parts = [picture, svg("rect", { class: "frame", width, height })];
  picture.setAttribute("width", width);
  picture.setAttribute("height", height);
  for (const x of drawing.seams_px ?? []) {
    parts.push(svg("line", { class: "seam", x1: x, x2: x, y1: 0, y2: height }));
  }
  for (const [[x1, y1], [x2, y2]] of drawing.matches_px ?? []) {
    parts.push(
      svg("circle", { class: "match", cx: x1, cy: y1, r: size / 5 }),
      svg("line", { class: "match", x1, y1, x2, y2 }),
    );
  }
  for (const [index, [name, points]] of [...outlines].entries()) {
    const stroke = COLOURS[index % COLOURS.length];
    const { left, right, top } = bounds(points);
    parts.push(svg("polygon", { class: "outline", points: points.map((point) => point.join()).join(" "), stroke }));
    const at = { x: (left + right) / 2, y: Math.max(top, all.top) + 1.6 * size, fill: stroke, "font-size": 1.3 * size };
    parts.push(svg("text", at, name));
  }
  for (const [index, pair] of [...pairs.values()].entries()) {
    const [one, other] = pair.cameras.map((name) => outlines.get(name) && bounds(outlines.get(name)));
    const px = pair.residual_px ?? pair.rms_px;
    if (one && other && isNumber(px)) {
      // If two neighbours are at opposite ends of a full circle, shift one by a turn.
      const apart = (other.left + other.right - one.left - one.right) / 2;
      const shift = drawing.turn_px ? -drawing.turn_px * Math.round(apart / drawing.turn_px) : 0;
      const x = (Math.max(one.left, other.left + shift) + Math.min(one.right, other.right + shift)) / 2;
      const y = height / 2 + (index % 2 ? 1.2 : -1.2) * size; // in two rows: narrow overlaps leave no room beside
      parts.push(svg("text", { class: judge(px), x, y, "font-size": size }, `${px.toFixed(1)} px`));
    }
  }
  const box = [all.left - margin, all.top - margin, all.right - all.left, all.bottom - all.top];
  element("drawing").setAttribute("viewBox", `${box[0]} ${box[1]} ${box[2] + 2 * margin} ${box[3] + 2 * margin}`);
  element("drawing").replaceChildren(...parts);
}

function show(services) {
  const stitcher = stitcherOf(services);
  if (stitcher === undefined) {
    element("summary").textContent = "no stitcher has reported a calibration yet";
    return;
  }
  const { calibration, cameras = {} } = stitcher.details;
  const isSilent = stitcher.silent ? ` (the stitcher is ${stitcher.reason})` : "";
  const pairs = pairsOf(calibration);
  const key = JSON.stringify([calibration, cameras, isSilent]);
  // Do not rebuild the tables without a change: that would end a selection in them.
  if (key === drawn) {
    return;
  }
  drawn = key;
  element("summary").textContent = `${calibration.state ?? ""}${isSilent}`;
  element("warning").textContent = calibration.quality?.warning ?? "";
  element("caption").textContent = calibration.coverage?.sentence ?? "";
  const names = new Set([...Object.keys(cameras), ...Object.keys(calibration.cameras ?? {})]);
  element("cameras").replaceChildren(...[...names].map((name) => cameraRow(name, cameras[name], calibration)));
  element("pairs").replaceChildren(...[...pairs].map(([name, pair]) => pairRow(name, pair)));
  draw(calibration, pairs);
}

function renewPicture() {
  const picture = element("drawing").querySelector("image");
  if (picture !== null && !document.hidden && performance.now() - pictureAt > PICTURE_MS) {
    pictureAt = performance.now();
    // The number makes the address differ, because an unchanged one is not requested again.
    picture.setAttribute("href", new URL(`snapshot.jpg?${Date.now()}`, document.baseURI));
  }
}

async function ask() {
  try {
    const answer = await fetch(new URL("api/status", document.baseURI), { cache: "no-store" });
    show((await answer.json()).services);
    renewPicture();
  } catch (error) {
    drawn = ""; // show everything anew once the connection is back
    element("summary").textContent = "connection lost, trying again";
    console.warn(`no status: ${error}`);
  }
  setTimeout(ask, ASK_MS);
}

ask();
