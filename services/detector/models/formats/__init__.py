"""The formats of networks: the meaning of their outputs, and the requirements of their inputs.

To add a format, add a module and a line here.
"""

from __future__ import annotations

from services.detector.models.errors import ModelError
from services.detector.models.formats.base import Format, Graph
from services.detector.models.formats.detr import Queries, RfDetr, RtDetr, UltralyticsRtDetr
from services.detector.models.formats.end_to_end import EndToEnd
from services.detector.models.formats.nanodet import DecodedNanoDet, NanoDet
from services.detector.models.formats.ssd import Ssd
from services.detector.models.formats.ultralytics import Ultralytics
from services.detector.models.formats.yolox import Yolox

FORMATS: tuple[type[Format], ...] = (
    Ultralytics,
    EndToEnd,
    Yolox,
    RtDetr,
    Queries,
    UltralyticsRtDetr,
    RfDetr,
    Ssd,
    NanoDet,
    DecodedNanoDet,
)


def find_format(graph: Graph, name: str | None) -> Format:
    """Return the format of a network.

    Args:
        graph: The network's interface.
        name: The format that the bundle or the operator says it has; None to recognise it.

    Raises:
        ModelError: No format fits, or several do; one sentence without the file's name.
    """
    if name is not None and name not in (names := [kind.name for kind in FORMATS]):
        raise ModelError(f"is said to have the format {name!r}, which is unknown; known are {', '.join(names)}")
    found = [
        recognised
        for kind in FORMATS
        if name in (None, kind.name) and (recognised := kind.recognise(graph)) is not None
    ]
    if len(found) == 1:
        return found[0]
    outputs = ", ".join(f"{name} {output.dtype} {output.shape}" for name, output in graph.outputs.items())
    if found:
        kinds = ", ".join(recognised.name for recognised in found)
        raise ModelError(f"gives {outputs}, which may be {kinds}: say which by detector.format")
    if name is not None:
        raise ModelError(f"gives {outputs}, which does not fit the format {name}")
    known = "; ".join(f"{kind.name} {kind.known}" for kind in FORMATS)
    raise ModelError(f"gives {outputs}, which no known format has; known are: {known}; export it in one of them")
