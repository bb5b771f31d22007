// Predicts the objects' positions in the displayed picture. This is required because a detector is slower than the video,
// and a slow line delivers pictures later than detections.
//
// All times are of the server's clock, in milliseconds; all positions in pixels of the full frame. The detector, its
// tracker's epoch, the publisher's epoch and the track's number together identify an object: each tracker numbers its
// objects from 1, and a detector that restarts may have a new tracker.

// Messages of each detector that are kept, because a slow line delivers pictures later than detections.
const KEPT = 12;
// Least time over which an object's speed is measured: people turn round, so an older movement misleads.
const MEASURED_MS = 200;
// Share of its size by which the boxes of an object differ although it does not move.
const JITTER = 0.05;
// Longest time for which an object is moved at its speed.
const FURTHEST_MS = 1000;
// A detector that was silent for this long may have restarted, so that its numbers mean other objects.
const LONGEST_GAP_MS = 1500;
// Largest speed, in sizes of the object per second; a larger jump is another object.
const FASTEST_SIZES = 6;
// Movement that the inexact boxes of an object at rest may show.
const JITTER_PX = 8;
// Largest ratio of an object's sizes in two messages.
const LARGEST_GROWTH = 2;
// Least intersection over union of one object's boxes by two detectors.
const SAME_OVERLAP = 0.5;
// Speed, in sizes per second, above which the prediction is soon wrong, so that the box fades twice as early.
const STANDING_SIZES = 0.25;

export class Motion {
  #detectors = new Map();

  // Add a detections message.
  add({ instance, epoch, tracker, captured_ms: captured, full_width: fullWidth, objects }) {
    let seen = this.#detectors.get(instance) ?? [];
    const last = seen.at(-1);
    if (last !== undefined) {
      if (
        last.epoch !== epoch ||
        last.tracker !== tracker ||
        captured - last.captured > LONGEST_GAP_MS ||
        captured < last.captured
      ) {
        seen = [];
      } else if (captured === last.captured) {
        return;
      }
    }
    const entry = { epoch, tracker, captured, fullWidth, objects: [], tracks: new Map() };
    for (const object of objects) {
      const followed = { ...object, instance, vx: 0, vy: 0 };
      if (object.track) {
        follow(followed, seen, captured);
        entry.tracks.set(object.track, followed);
      }
      entry.objects.push(followed);
    }
    seen.push(entry);
    this.#detectors.set(instance, seen.slice(-KEPT));
  }

  clear() {
    this.#detectors.clear();
  }

  // Return the objects in the picture of that epoch and capture, each with its opacity. An object seen at another time than
  // the picture's fades from half of maxAgeMs on and disappears at maxAgeMs; a moving object at half of these. seenAt: the
  // oldest capture in which they were found.
  at(epoch, captured, maxAgeMs) {
    const shown = [];
    let seenAt = null;
    // If two detectors see an object, the box of the newer message is shown.
    const newestFirst = [...this.#detectors.values()].sort((a, b) => b.at(-1).captured - a.at(-1).captured);
    for (const seen of newestFirst) {
      const found = place(
        seen.filter((entry) => entry.epoch === epoch),
        captured,
      );
      if (found === null || found.distance >= maxAgeMs) {
        continue;
      }
      seenAt = Math.min(seenAt ?? Infinity, found.seenAt);
      for (const object of found.objects) {
        const opacity = Math.min(1, 2 - (2 * found.distance) / (moves(object) ? maxAgeMs / 2 : maxAgeMs));
        if (opacity > 0 && !shown.some((other) => isSame(object, other))) {
          shown.push({ ...object, opacity });
        }
      }
    }
    return { objects: shown, seenAt };
  }
}

// Set a tracked object's speed, in pixels per millisecond, from the detector's earlier messages.
function follow(object, seen, captured) {
  const known = seen.filter(({ tracks }) => tracks.has(object.track));
  const before = known.findLast((entry) => captured - entry.captured >= MEASURED_MS) ?? known[0];
  if (before === undefined) {
    return;
  }
  const earlier = before.tracks.get(object.track);
  const elapsed = captured - before.captured;
  if (!isBelievable(earlier, object, elapsed)) {
    return;
  }
  const speed = (corner, size) => {
    const moved = object[corner] + object[size] / 2 - earlier[corner] - earlier[size] / 2;
    return (Math.sign(moved) * Math.max(0, Math.abs(moved) - JITTER * object[size])) / elapsed;
  };
  object.vx = speed("x", "width");
  object.vy = speed("y", "height");
}

function isBelievable(a, b, elapsed) {
  if (a.label !== b.label) {
    return false;
  }
  const size = Math.max(a.width, a.height, b.width, b.height);
  const smaller = Math.min(Math.max(a.width, a.height), Math.max(b.width, b.height));
  const moved = Math.hypot(a.x + a.width / 2 - b.x - b.width / 2, a.y + a.height / 2 - b.y - b.height / 2);
  return size <= smaller * LARGEST_GROWTH && moved <= (FASTEST_SIZES * size * elapsed) / 1000 + JITTER_PX;
}

// Returns the objects of one detector at a time, and the distance in time to their sighting.
function place(seen, captured) {
  if (seen.length === 0) {
    return null;
  }
  const after = seen.findIndex((entry) => entry.captured > captured);
  if (after < 0 || after === 0) {
    const nearest = after < 0 ? seen.at(-1) : seen[0];
    // Before the first message, use the speed that follows from the next one.
    const speeds = after === 0 ? (seen[1] ?? nearest) : nearest;
    const elapsed = captured - nearest.captured;
    return {
      objects: nearest.objects.map((object) => shift(object, speeds, elapsed)),
      distance: Math.abs(elapsed),
      seenAt: nearest.captured,
    };
  }
  const [earlier, later] = [seen[after - 1], seen[after]];
  const elapsed = later.captured - earlier.captured;
  const share = (captured - earlier.captured) / elapsed;
  // Show the objects of the nearer message only: one that has just come or gone is in one of the two.
  const nearest = share < 0.5 ? earlier : later;
  const other = nearest === earlier ? later : earlier;
  const objects = nearest.objects.map((object) => {
    const match = object.track ? other.tracks.get(object.track) : undefined;
    if (match === undefined || !isBelievable(object, match, elapsed)) {
      return shift(object, nearest, captured - nearest.captured);
    }
    const [from, to] = nearest === earlier ? [object, match] : [match, object];
    const between = (name) => from[name] + share * (to[name] - from[name]);
    return { ...object, x: between("x"), y: between("y"), width: between("width"), height: between("height") };
  });
  return { objects, distance: 0, seenAt: earlier.captured };
}

function shift(object, speeds, elapsed) {
  const { vx, vy } = (object.track && speeds.tracks.get(object.track)) || object;
  const by = Math.min(Math.max(elapsed, -FURTHEST_MS), FURTHEST_MS);
  return { ...object, vx, vy, x: object.x + vx * by, y: object.y + vy * by };
}

function moves({ vx, vy, width, height }) {
  return Math.hypot(vx, vy) * 1000 > STANDING_SIZES * Math.max(width, height);
}

// Two detectors may see the same object.
function isSame(a, b) {
  if (a.instance === b.instance || a.label !== b.label) {
    return false;
  }
  const width = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
  const height = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
  if (width <= 0 || height <= 0) {
    return false;
  }
  const common = width * height;
  return common / (a.width * a.height + b.width * b.height - common) >= SAME_OVERLAP;
}
