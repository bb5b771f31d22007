"""Publishes several streams from one event loop until Ctrl-C."""

import asyncio
import itertools
import sys

from framebus import FramebusError, FrameFormat, Publisher


async def publish(stream: str, interval_s: float) -> None:
    """Publish a frame of one brightness after another."""
    with Publisher(stream, FrameFormat(480, 640, None)) as publisher:
        print(f"publishing {stream}", flush=True)
        for number in itertools.count():
            loan = publisher.loan()  # neither this nor publish() waits, so no thread is needed
            loan.pixels[:] = number % 256
            loan.publish()
            await asyncio.sleep(interval_s)


async def main(*streams: str) -> None:
    """Publish each stream at a pace of its own."""
    names = streams or ("left", "right")
    await asyncio.gather(*(publish(name, 0.04 * (1 + index)) for index, name in enumerate(names)))


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
