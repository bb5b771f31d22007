"""The end of a chain: prints what each frame still knows of its capture until Ctrl-C or until the source is gone."""

import sys
import time

from framebus import FramebusError, Subscriber


def main(stream: str = "negative") -> None:
    """Print the age of each frame since the first publisher captured it."""
    with Subscriber(stream, name="report", gone_after_s=1.0) as subscriber:
        for frame in subscriber:
            age_ms = (time.monotonic_ns() - frame.captured_ns) / 1e6
            bar = frame.pixels[0, :, 0].argmin()
            print(f"number {frame.metadata['number']}: bar at {bar}, captured {age_ms:.1f} ms ago", flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
