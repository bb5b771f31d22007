"""The picture of the detector's tests, which is read once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.services.detector.pictures import campus_path


@pytest.fixture(scope="package")
def place() -> npt.NDArray[np.uint8]:
    """A frame of a campus path with seven people on it, (688, 1152, 3), BGR; they are 90 to 150 px tall."""
    return campus_path()
