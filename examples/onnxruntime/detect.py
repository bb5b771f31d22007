"""Prints how many people a network sees in each frame until Ctrl-C, or until the publisher is gone."""

import sys

import cv2
import numpy as np
import onnxruntime as ort

from framebus import FramebusError, Subscriber

PERSON = 0  # of COCO's classes


def main(model: str = "models/default/nanodet_g_480_int8.onnx", stream: str = "camera") -> None:
    """Run the network on the newest frame; those that come meanwhile are skipped."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()  # (1, height, width, 3) of uint8, BGR
    _, height, width, _ = image.shape
    with Subscriber(stream, name="detect", gone_after_s=2.0) as subscriber:
        for frame in subscriber:
            picture = cv2.resize(frame.pixels, (width, height))  # a new array
            frame.release()  # so the slot is free while the network runs
            (scores,) = session.run(["scores"], {image.name: picture[np.newaxis]})
            cells = np.count_nonzero(scores[0, :, PERSON] > 0.4)
            print(f"frame {frame.sequence}: a person in {cells} cells, skipped {frame.skipped}", flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
