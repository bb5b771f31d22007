"""Prints the mean colour of each frame, computed by torch, until Ctrl-C or until the publisher is gone."""

import sys

import torch
from torch.utils.dlpack import from_dlpack

from framebus import FramebusError, Subscriber


def main(stream: str = "camera") -> None:
    """Compute on a tensor that is the frame's own memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with Subscriber(stream, name="average", gone_after_s=2.0) as subscriber:
        for frame in subscriber:
            shared = from_dlpack(frame)  # no copy; never change it in place, the memory is read-only
            picture = shared.to(device).permute(2, 0, 1).float().div_(255)  # float() made a new tensor
            blue, green, red = picture.mean(dim=(1, 2)).tolist()
            print(f"frame {frame.sequence}: blue {blue:.3f}, green {green:.3f}, red {red:.3f}", flush=True)
            del shared  # it holds the slot, as the frame does


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
