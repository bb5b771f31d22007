"""Compares what detectors find and cost: ``python -m bench.detect [MODEL|BUNDLE …]``.

On a film of pedestrians at three scales, in tiles of the service's size: recall, and boxes that match no person. The
people are those on whom two models agree at full size in small tiles, so that no model judges itself. The same figures
follow on the simulator's panorama, whose truth is known. CPU time is measured in turns, on one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from services.detector.boxes import Floats, intersection_over_union
from services.detector.config import DetectorSection
from services.detector.detector import find_all
from services.detector.models.model import Model, ModelError, load_model
from services.detector.tiles import Pixels
from services.simulator.config import SimulatorSection
from services.simulator.scene import Scene, ground_truth, scene

ROOT: Final = Path(__file__).resolve().parent.parent
WEIGHTS: Final = ROOT.parent / "shared" / "models"
FILMS: Final = (ROOT.parent / "shared/footage/pedestrians.mp4", ROOT / "services/simulator/footage/pedestrians.mp4")
PEERS: Final = ("coco_ssdlite_mnv2_w8.onnx", "yolox_nano_416_coco.onnx")
PICTURES: Final = 30
PERSON_PX: Final = 80
"""Usual height of a person in the film."""
SCALES: Final = (1.0, 0.5, 1 / 3)
TILE_PX, OVERLAP_PX = 688, 220
SMALL_TILE_PX, SMALL_OVERLAP_PX = 384, 160
MATCH: Final = 0.5
TURNS: Final = 50
WIDTH_PX, HEIGHT_PX = 4896, 688
YAW_RAD: Final = math.radians(97)
GREY: Final = 110


def find(model: Model, pixels: Pixels, tile_px: int, overlap_px: int) -> Floats:
    """Return the corners of the people that a model finds in a picture."""
    boxes = find_all(DetectorSection(tile_px=tile_px, overlap_px=overlap_px), model, pixels)
    return boxes.take(boxes.labels == model.labels.index("person")).xyxy


def agreed(found: Sequence[Floats]) -> Floats:
    """Return the boxes that at least two models found, once each."""
    kept: list[Floats] = []
    # A box counts if another model has seconded it, and once, however many models have.
    for index, boxes in enumerate(found):
        for box in boxes:
            others = (other for place, other in enumerate(found) if place != index)
            seconded = any((intersection_over_union(box[None], other) > MATCH).any() for other in others)
            known = kept and (intersection_over_union(box[None], np.stack(kept)) > MATCH).any()
            if seconded and not known:
                kept.append(box)
    return np.stack(kept) if kept else np.zeros((0, 4), np.float32)


def scaled(pixels: Pixels, scale: float) -> Pixels:
    """Return a picture made smaller; if it is smaller than a tile, it is in the top left corner of a grey one."""
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    height, width = max(TILE_PX, small.shape[0]), max(TILE_PX, small.shape[1])
    # Models take whole tiles. Pad with grey instead of enlarging, because the scale is what is compared.
    canvas = np.full((height, width, 3), GREY, np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    return canvas


def film() -> list[Pixels]:
    """Return pictures of the film, evenly spread."""
    path = next(path for path in FILMS if path.exists())
    capture = cv2.VideoCapture(str(path))
    pictures = []
    while True:
        complete, picture = capture.read()
        if not complete:
            break
        pictures.append(np.asarray(picture, np.uint8))
    capture.release()
    # Leave out the film's first and last picture.
    places = np.linspace(0, len(pictures) - 1, PICTURES + 2)[1:-1].round().astype(int)
    return [pictures[place] for place in places]


def panorama(section: SimulatorSection, stage: Scene, index: int, visible: float) -> tuple[Pixels, list[int], Floats]:
    """Render a panorama of the simulator.

    Args:
        section: The simulator's settings.
        stage: Its scene.
        index: Number of the frame.
        visible: Include only people of whom at least this part is visible.

    Returns:
        The pixels, the people's numbers, and their corners, ``(n, 4)``.
    """
    v_half = YAW_RAD * HEIGHT_PX / WIDTH_PX
    pixels = ground_truth(section, index, WIDTH_PX, HEIGHT_PX, -YAW_RAD, YAW_RAD, -v_half, v_half)
    people = [
        one
        for one in stage.truth(stage.compose(index, stage.still.copy()))
        if one["label"] == "person" and one["visible"] >= visible
    ]
    edges = [(one["yaw_min_rad"], one["v_min"], one["yaw_max_rad"], one["v_max"]) for one in people]
    xyxy = (np.array(edges).reshape(-1, 4) + [YAW_RAD, v_half] * 2) * WIDTH_PX / (2 * YAW_RAD)
    return pixels, [one["id"] for one in people], xyxy.astype(np.float32)


def panoramas() -> list[tuple[Pixels, Floats]]:
    """Return panoramas of the simulator, with the corners of the people who are mostly visible."""
    section = SimulatorSection()
    stage = scene(section)
    indices = (0, section.frames // 3, section.frames * 2 // 3)
    views = [panorama(section, stage, index, MATCH) for index in indices]
    return [(pixels, xyxy) for pixels, _, xyxy in views]


def judge(model: Model, pictures: Sequence[tuple[Pixels, Floats]], scale: float) -> tuple[float, float]:
    """Return the recall, and the number of boxes a picture that match no person."""
    hits = people = false = 0
    for pixels, truth in pictures:
        found = find(model, scaled(pixels, scale), TILE_PX, OVERLAP_PX)
        overlap = intersection_over_union(truth * np.float32(scale), found) > MATCH
        hits += int(overlap.any(axis=1).sum())
        people += len(truth)
        false += int((~overlap.any(axis=0)).sum())
    return hits / max(people, 1), false / len(pictures)


def cpu_ms(models: Mapping[str, Model], tile: Pixels) -> dict[str, float]:
    """Return the median CPU time of a tile for each model."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(TURNS):
        for name, model in models.items():
            started_s = time.process_time()
            model.detect([tile])
            taken[name].append((time.process_time() - started_s) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Compare the default model, its peers whose weights are there, and the models named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.detect", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL|BUNDLE")
    options = parser.parse_args()
    # One thread, as in the service.
    cv2.setNumThreads(1)
    paths = [None, *(WEIGHTS / name for name in PEERS if (WEIGHTS / name).exists()), *options.models]
    try:
        loaded = [load_model(DetectorSection(model=path)) for path in paths]
    except ModelError as error:
        parser.exit(1, f"{error}\n")
    models = {model.name: model for model in loaded}
    if len(models) < 2:
        parser.exit(1, "one model alone would judge itself: name another\n")
    pictures = film()
    # Small tiles at full size show people larger, so the models miss few of them.
    truth = [
        (picture, agreed([find(model, picture, SMALL_TILE_PX, SMALL_OVERLAP_PX) for model in models.values()]))
        for picture in pictures
    ]
    views = panoramas()
    times = cpu_ms(models, scaled(pictures[0], 1.0)[:TILE_PX, :TILE_PX])
    print(f"{sum(len(people) for _, people in truth)} people in {len(pictures)} pictures of the film; in the panoramas")
    print(f"{sum(len(people) for _, people in views)}. Recall / boxes a picture that match no person.\n")
    heights = [f"{round(PERSON_PX * scale)} px" for scale in SCALES]
    columns = [f"film {height}" for height in heights]
    columns += [f"panorama 1/{round(1 / scale)}" for scale in SCALES]
    print(f"| model | {' | '.join(columns)} | CPU-ms a tile |")
    print(f"| --- |{' --- |' * (len(columns) + 1)}")
    for name, model in models.items():
        cells = [judge(model, on, scale) for on in (truth, views) for scale in SCALES]
        row = " | ".join(f"{recall:.2f} / {false:.2f}" for recall, false in cells)
        print(f"| {name} | {row} | {times[name]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
