"""The pictures of the detector's tests."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from tests.support import ROOT

FILM = ROOT / "services" / "simulator" / "footage" / "pedestrians.mp4"


def film_frame() -> npt.NDArray[np.uint8]:
    """A frame of the film of pedestrians, (576, 768, 3), BGR."""
    film = cv2.VideoCapture(str(FILM))
    for _ in range(121):
        complete, frame = film.read()
    film.release()
    assert complete
    return np.asarray(frame, np.uint8)


def campus_path() -> npt.NDArray[np.uint8]:
    """The campus path of that frame with seven people on it, (688, 1152, 3), BGR; they are 90 to 150 px tall."""
    picture = np.ascontiguousarray(cv2.resize(film_frame(), None, fx=1.5, fy=1.5)[100:788], np.uint8)
    picture.flags.writeable = False
    return picture
