"""Prints the size and brightness of each frame of another container's stream."""

import signal
import sys

from framebus import FramebusError, Subscriber


def main(stream: str = "camera") -> None:
    """Wait for the publisher, also while its container restarts."""
    with Subscriber(stream, name="watch", attach_timeout_s=None, gone_after_s=None) as subscriber:
        for frame in subscriber:
            height, width, channels = frame.shape
            brightness = frame.pixels[::8, ::8].mean()
            print(f"frame {frame.sequence}: {width}x{height}x{channels}, brightness {brightness:.2f}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # 'docker stop' ends it as Ctrl-C does
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
