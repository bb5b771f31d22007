"""The model that comes with the detector, and the labels that it knows.

A configuration is checked against them, so this imports neither OpenCV nor ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = Path(__file__).parent / "model" / "coco_ssdlite_mnv2_w8.onnx"
"""The ONNX file in the package."""

# fmt: off
_COCO: tuple[str | None, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", None, "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", None, "backpack", "umbrella", None, None, "handbag", "tie", "suitcase",
    "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", None, "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana",
    "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", None, "dining table", None, None, "toilet", None, "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", None, "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
COCO_COLUMNS = {label: column for column, label in enumerate(_COCO) if label is not None}
"""Column of the scores for each of COCO's 80 labels; ten of its 90 numbers were never used."""
