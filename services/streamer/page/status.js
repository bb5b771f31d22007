// Texts about the state of the picture, and about missing parts.

// Age of a detector's newest frame from which the page says that it is behind.
const BEHIND_MS = 1500;
// What precedes the name of an absent part, by its kind.
const PREFIXES = { camera: "camera ", worker: "detector " };

// Formats seconds for reading at a glance, rounded up.
export function seconds(ms) {
  return ms < 10000 ? `${(Math.ceil(ms / 100) / 10).toFixed(1)} s` : `${Math.ceil(ms / 1000)} s`;
}

// Returns the picture's state: a name for the style, a text for the bar, and a text to lay over the picture, if any.
//
// ageMs: age of the displayed picture since its capture; null without a picture, NaN while it is not known.
export function pictureState({ connected, attempted, refusal, server, ageMs }) {
  if (!connected) {
    if (refusal) {
      return ["lost", "refused", refusal];
    }
    return attempted
      ? ["lost", "connection lost", "connection lost, trying again"]
      : ["connecting", "connecting", "connecting"];
  }
  if (server === null || Number.isNaN(ageMs)) {
    return ["connecting", "connecting", "connecting"];
  }
  if (server.state === "absent") {
    return ["waiting", "waiting", `waiting for the stream: ${server.reason}`];
  }
  if (ageMs === null) {
    const reason = server.reason ? `waiting for the stream: ${server.reason}` : "waiting for the first picture";
    return ["waiting", "waiting", reason];
  }
  // By the age of the displayed picture, not by the server's state: the line may be slow where the stream is live.
  if (ageMs >= server.stale_after_ms) {
    const reason = server.reason ? `: ${server.reason}` : "";
    const age = `${Math.ceil(ageMs / 1000)} s`;
    return ["stale", `stale, ${age}`, `no picture for ${age}${reason}`];
  }
  if (ageMs >= server.delayed_after_ms) {
    return ["delayed", `delayed ${seconds(ageMs)}`, ""];
  }
  return ["live", "live", ""];
}

// Returns one phrase for each service, camera and detector that is silent, unhealthy or behind, and the stitcher's notices.
// clock: the server's clock.
export function missing(server, clock) {
  if (server === null) {
    return [];
  }
  // The ages in the message were true when it was sent.
  const sinceMs = Math.max(clock.since(server.sent_ms) ?? 0, 0);
  const services = new Set();
  const phrases = server.absent.map(({ kind, name, silent_s: silent, reason }) => {
    services.add(name);
    const what = `${PREFIXES[kind] ?? ""}${name}`;
    if (silent === 0) {
      return `${what}: ${reason}`;
    }
    const how = reason === "silent" ? "" : ` (${reason})`;
    return `${what} silent for ${Math.floor(silent + sinceMs / 1000)} s${how}`;
  });
  const several = server.detectors.length > 1;
  for (const { instance, captured_ms: captured, received_ms: received } of server.detectors) {
    // Count up to the sending of this message, so that a slow line does not count as silence of the detector.
    const silentMs = server.sent_ms - received;
    const behindMs = server.sent_ms - captured;
    const name = several ? `detector ${instance}` : "detector";
    // A detector that has processed the newest picture waits for the next one and is not silent.
    const waits = server.state !== "live" && server.captured_ms - captured <= server.silent_after_ms;
    if (services.has(instance) || waits) {
      continue;
    }
    if (silentMs > server.silent_after_ms) {
      phrases.push(`${name} silent for ${Math.floor((silentMs + sinceMs) / 1000)} s`);
    } else if (behindMs > BEHIND_MS) {
      phrases.push(`${several ? `detection of ${instance}` : "detection"} ${seconds(behindMs)} behind`);
    }
  }
  return [...phrases, ...(server.notices ?? [])];
}
