"""Receives until the stream ends and checks every byte: ``check_frames.py STREAM MODE WAKE HOLD_MS [GONE_S]``.

Prints the number of frames, of those torn, and of sequences that did not grow.
"""

from __future__ import annotations

import random
import sys
import time

from framebus import StreamGone, Subscriber


def main() -> None:
    stream, mode, wake, hold_ms, *gone_s = sys.argv[1:]
    received = torn = backwards = last = 0
    hold_s = float(hold_ms) / 1e3
    gone_after_s = float(gone_s[0]) if gone_s else 0.2
    with Subscriber(stream, name="checker", mode=mode, wake=wake, gone_after_s=gone_after_s) as subscriber:  # type: ignore[arg-type]
        print("open", flush=True)
        try:
            for frame in subscriber:
                received += 1
                backwards += frame.sequence <= last
                last = frame.sequence
                expected = last % 251
                early = bool((frame.pixels == expected).all())
                time.sleep(hold_s * random.random())
                torn += not (early and bool((frame.pixels == expected).all()))
        except StreamGone:
            pass
        statistics = subscriber.statistics
    print(received, torn, backwards, statistics.skipped, last, flush=True)


main()
