// Where tracked objects are by now: a detector is slower than the video, and people walk on meanwhile.

const SMOOTHING = 0.5;
const FURTHEST_MS = 1000;

export class Motion {
  #tracks = new Map();
  #newest = 0;

  // The objects of a detections message, each moved on along its track to the picture that is shown, which itself is
  // shownMs old, and by half the time to the next message, so that it is as often ahead of its object as behind.
  forward(found, shownMs) {
    const captured = performance.now() - found.age_ms;
    const interval = this.#newest ? Math.max(captured - this.#newest, 0) : 0;
    this.#newest = captured;
    const ahead = Math.min(Math.max(found.age_ms - shownMs, 0) + interval / 2, FURTHEST_MS);
    const tracks = new Map();
    const objects = found.objects.map((object) => {
      const track = this.#follow(object, captured);
      if (track === null) {
        return object;
      }
      tracks.set(object.track, track);
      return { ...object, x: object.x + track.vx * ahead, y: object.y + track.vy * ahead };
    });
    this.#tracks = tracks;
    return { ...found, objects };
  }

  // Position and smoothed speed, in pixels of the full frame a millisecond; null for what is not tracked.
  #follow(object, captured) {
    if (!object.track) {
      return null;
    }
    const place = { x: object.x + object.width / 2, y: object.y + object.height / 2, captured };
    const before = this.#tracks.get(object.track);
    if (before === undefined || captured <= before.captured) {
      return { ...place, vx: 0, vy: 0 };
    }
    const elapsed = captured - before.captured;
    const mix = (old, now) => old + SMOOTHING * (now - old);
    return {
      ...place,
      vx: mix(before.vx, (place.x - before.x) / elapsed),
      vy: mix(before.vy, (place.y - before.y) / elapsed),
    };
  }
}
