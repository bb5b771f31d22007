"""Read pictures from files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from services.common.service import ServiceError


def read_picture(path: Path, what: str, remedy: str, *, flags: int = cv2.IMREAD_COLOR) -> npt.NDArray[np.uint8]:
    """Read a picture: uint8 of shape ``(height, width, 3)``, BGR, unless OpenCV's ``flags`` say otherwise.

    Args:
        path: The file.
        what: Subject of the error message.
        remedy: What to do if the file is not a picture, for the error message.
        flags: Flags of ``cv2.imdecode``.

    Raises:
        ServiceError: The file cannot be read, or is not a picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ServiceError(f"{what} cannot be read: {error.strerror}") from None
    # OpenCV prints warnings about a damaged file to standard error; the message below replaces them.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    if picture is None:
        raise ServiceError(f"{what} is not a picture that can be read: {remedy}")
    return np.asarray(picture, np.uint8)
