"""``framebus-detector run REFERENCE.json``: processes one frame of the storage, as a detector on a queue does.

It reproduces a detector's result for a frame, or its failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import traceback
from pathlib import Path
from typing import Final

from services.common.config import LogSection, load
from services.common.detections import to_map
from services.common.frame_codec import CannotDecode, decode
from services.common.logs import set_up_logs
from services.common.reference import MAX_REFERENCE_BYTES, BadReference, FrameReference
from services.common.service import ServiceError
from services.common.storage import Storage, StorageError
from services.detector.config import QUEUE, DetectorConfiguration
from services.detector.frame_processor import frame_of
from services.detector.service import load_service

EXIT_FAILED: Final = 1


def main(arguments: list[str]) -> int:
    """Process one frame of the storage as a detector on a queue does, and print the result as JSON.

    Raises:
        ServiceError: The reference, the storage, the object or the model is unusable.
    """
    parser = argparse.ArgumentParser(prog="framebus-detector run", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("reference", type=Path, metavar="REFERENCE.json", help="a frame's reference; docs/relay.md")
    parser.add_argument("--config", type=Path, help="the YAML file of all services; without it, the defaults apply")
    options = parser.parse_args(arguments)
    set_up_logs("detector", LogSection(level="warning"))  # to standard error, separate from the output
    configuration = load(DetectorConfiguration, options.config)
    try:
        reference = _read(options.reference, configuration.stream.name)
        data = asyncio.run(Storage(configuration.storage).fetch(reference))
    except (BadReference, StorageError) as error:
        raise ServiceError(str(error)) from None
    # As on a queue, whatever source is configured: the whole frame, and without earlier tracks.
    section = configuration.detector.model_copy(update={"source": QUEUE})
    detector = load_service(configuration.model_copy(update={"detector": section}), threading.Event())
    try:
        detections = detector.look(frame_of(decode(data, reference), reference))
    except (BadReference, CannotDecode) as error:
        raise ServiceError(str(error)) from None
    except Exception as error:  # noqa: BLE001  any failure is a result of this command
        traceback.print_exc()
        sys.stderr.write(f"the detector fails on frame {reference.key}: {type(error).__name__}: {error}\n")
        return EXIT_FAILED
    print(json.dumps(to_map(detections)))
    return 0


def _read(path: Path, stream: str) -> FrameReference:
    try:
        with path.open("rb") as file:
            reference = FrameReference.from_json(file.read(MAX_REFERENCE_BYTES + 1))
    except OSError as error:
        raise ServiceError(f"the reference {path} cannot be read: {error.strerror}") from None
    except BadReference as error:
        raise ServiceError(f"{path} is not a reference to a frame: {error}") from None
    if reference.stream != stream:
        raise ServiceError(f"the frame is of stream {reference.stream}, and stream.name is {stream}: set the other one")
    return reference
