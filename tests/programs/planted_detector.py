"""A detector on a queue with planted answers: ``planted_detector.py CONFIGURATION INSTANCE WORK_S [RAISES_AT]``.

It is the detector's own worker with another network: each frame takes ``WORK_S``, and the sequence ``RAISES_AT`` fails.
The configuration is a relay's, as JSON. It ends with its input.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from services.common.detections import Detections
from services.common.recording import RecordedFrame
from services.relay.config import RelayConfiguration
from tests.services.relay.parts import planted, running_detector


def main() -> None:
    configured = RelayConfiguration.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    instance, work_s = sys.argv[2], float(sys.argv[3])
    raises_at = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    sys.stderr = open("/dev/null", "w")  # noqa: SIM115  the log of a detector that is killed all the time

    def look(frame: RecordedFrame) -> Detections:
        time.sleep(work_s)
        if frame.sequence == raises_at:
            raise RuntimeError("planted failure")
        return planted(frame, configured.stream.name, instance)

    with running_detector(configured, instance=instance, look=look):
        print("runs", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
