"""Follows several streams in one event loop until Ctrl-C, or until a publisher has been gone for two seconds."""

import asyncio
import sys

from framebus import FramebusError, Subscriber


async def follow(stream: str) -> None:
    """Print the brightness of each frame; other tasks run while this one waits."""
    async with await Subscriber.attach(stream, gone_after_s=2.0) as subscriber:
        async for frame in subscriber:
            print(f"{stream} {frame.sequence}: brightness {frame.pixels[0, 0]}", flush=True)


async def main(*streams: str) -> None:
    """Follow all streams, each by a task with a subscriber of its own."""
    await asyncio.gather(*map(follow, streams or ("left", "right")))


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
