"""Rigs of cameras with known poses, their pictures, and how far a calibration is from the truth.

A world is a picture on a full cylinder, ``v = tan(pitch)``, far away; things in front of it, at a known distance, give
parallax to cameras that do not stand at one point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import Calibration, CameraPose, max_radius
from services.stitcher.rendering.panorama import inside, plan, source_maps
from tests.services.stitcher.scene import rotation

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

PANORAMA_PX = (4896, 1104)
CORNERS = 0.01
"""Share of a picture that a right lens may leave without directions."""


@dataclass(frozen=True)
class World:
    """A far cylinder, and optional objects in front of it."""

    picture: Image
    """BGR; its width is the full circle."""
    near: Image | None = None
    """Of the same shape: what stands nearer."""
    near_mask: Image | None = None
    """255 where something stands nearer."""
    near_m: float = 5.0
    """How far away that is."""

    @property
    def scale_px(self) -> float:
        return float(self.picture.shape[1] / (2 * math.pi))

    def sample(self, directions: Matrix, position_m: Matrix) -> Image:
        """Return what is seen from a position in these directions, of shape ``(height, width, 3)``."""
        seen = _sample(self.picture, directions, self.scale_px)
        if self.near is not None and self.near_mask is not None:
            hits = self.meet_near(directions, position_m)
            alpha = _sample(self.near_mask, hits, self.scale_px)[..., None].astype(np.float32) / 255
            seen = (seen * (1 - alpha) + _sample(self.near, hits, self.scale_px) * alpha).astype(np.uint8)
        return seen

    def meet_near(self, directions: Matrix, position_m: Matrix) -> Matrix:
        """Return where rays from a position meet the nearer cylinder."""
        a = directions[..., 0] ** 2 + directions[..., 2] ** 2
        b = directions[..., 0] * position_m[0] + directions[..., 2] * position_m[2]
        c = position_m[0] ** 2 + position_m[2] ** 2 - self.near_m**2
        along = (-b + np.sqrt(np.maximum(b * b - a * c, 0))) / a
        return np.asarray(position_m + along[..., None] * directions)

    def is_near(self, hits: Matrix) -> npt.NDArray[np.bool_]:
        """Return whether there is an object at this place of the nearer cylinder."""
        assert self.near_mask is not None
        return np.asarray(_sample(self.near_mask, hits[None], self.scale_px)[0] > 127)


def _sample(picture: Image, directions: Matrix, scale_px: float) -> Image:
    yaw = np.arctan2(directions[..., 0], directions[..., 2])
    v = directions[..., 1] / np.hypot(directions[..., 0], directions[..., 2])
    columns = np.mod((yaw + math.pi) * scale_px - 0.5, picture.shape[1]).astype(np.float32)
    rows = (v * scale_px + picture.shape[0] / 2 - 0.5).astype(np.float32)
    padded = np.concatenate([picture, picture[:, :4]], axis=1)
    return np.asarray(cv2.remap(padded, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), np.uint8)


@dataclass(frozen=True)
class Shot:
    """One camera, and the faults of its pictures."""

    pose: CameraPose
    gain: float = 1.0
    vignetting: float = 0.0
    """Loss of light in the corners, as a share."""
    noise: float = 0.0
    """Standard deviation, in levels."""
    night: bool = False
    """Mean luma 34, deviation 12."""
    position_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    overlay: str = ""
    """A clock and this name are painted into the picture, where it is not empty."""

    def take(self, world: World, seed: int = 0) -> Image:
        """Take the picture."""
        pose = self.pose
        x, y = np.meshgrid(np.arange(pose.width_px, dtype=np.float64), np.arange(pose.height_px, dtype=np.float64))
        seen = world.sample(pose.directions(np.stack([x, y], axis=-1)), np.array(self.position_m)).astype(np.float32)
        if self.vignetting:
            radius = np.hypot(x - pose.center_x_px, y - pose.center_y_px) / math.hypot(*(s / 2 for s in seen.shape[:2]))
            seen *= (1 - self.vignetting * radius**2)[..., None].astype(np.float32)
        seen *= self.gain
        if self.night:
            seen = 34 + (seen - seen.mean()) * (12 / max(float(seen.std()), 1.0))
        if self.noise:
            random = np.random.default_rng(seed)
            seen += self.noise * random.standard_normal(seen.shape, dtype=np.float32)
        picture = np.clip(np.round(seen), 0, 255).astype(np.uint8)
        if self.overlay:
            _write(picture, self.overlay)
        return picture


def _write(picture: Image, name: str) -> None:
    height_px, width_px = picture.shape[:2]
    size = height_px / 400
    for text, place in (("2026-11-29 03:14:15", (10, round(30 * size))), (name, (10, height_px - round(12 * size)))):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 5, cv2.LINE_AA)
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 2, cv2.LINE_AA)
    place = (width_px - round(150 * size), height_px - round(12 * size))
    cv2.putText(picture, "HIKAM 4", place, cv2.FONT_HERSHEY_DUPLEX, size, (255, 255, 255), 2, cv2.LINE_AA)


def camera(
    name: str,
    yaw_deg: float,
    pitch_deg: float = 0.0,
    roll_deg: float = 0.0,
    *,
    hfov_deg: float = 60.0,
    size: tuple[int, int] = (1280, 720),
    k1: float = 0.0,
    k2: float = 0.0,
    pixel_aspect: float = 1.0,
    center: tuple[float, float] = (0.0, 0.0),
) -> CameraPose:
    """A camera that truly sees ``hfov_deg`` from its left to its right edge, distortion included."""
    half = math.tan(math.radians(hfov_deg) / 2)
    assert half < max_radius(k1, k2), "there is no such lens"
    focal_px = size[0] / 2 / (half * (1 + k1 * half**2 + k2 * half**4))
    return CameraPose(
        name=name,
        width_px=size[0],
        height_px=size[1],
        focal_px=focal_px,
        pixel_aspect=pixel_aspect,
        k1=k1,
        k2=k2,
        center_x_px=(size[0] - 1) / 2 + center[0],
        center_y_px=(size[1] - 1) / 2 + center[1],
        rotation=rotation(yaw_deg, pitch_deg, roll_deg).tolist(),
        confidence=2.0,
    )


@dataclass(frozen=True)
class Rig:
    """Cameras in a world."""

    world: World
    shots: tuple[Shot, ...]
    shown: Mapping[str, World] = field(default_factory=dict)
    """Cameras that stand in another world."""

    @property
    def truth(self) -> dict[str, CameraPose]:
        return {shot.pose.name: shot.pose for shot in self.shots}

    def take(self, seed: int = 0) -> dict[str, Image]:
        """Take one picture with each camera, in an order that reveals nothing."""
        order = np.random.default_rng(seed).permutation(len(self.shots))
        return {
            self.shots[i].pose.name: self.shots[i].take(
                self.shown.get(self.shots[i].pose.name, self.world), seed * 100 + int(i)
            )
            for i in order
        }


def row(
    world: World,
    count: int = 5,
    *,
    overlap: float = 0.28,
    seed: int = 0,
    hfov_deg: float = 60.0,
    size: tuple[int, int] = (1280, 720),
    k1: float = 0.0,
    k2: float = 0.0,
    tilt_deg: float = 0.0,
    gains: Sequence[float] = (1.0,),
    vignetting: float = 0.0,
    noise: float = 0.0,
    night: bool = False,
    overlay: bool = False,
    spacing_m: float = 0.0,
) -> Rig:
    """Cameras of one kind beside each other; roll and pitch up to ``tilt_deg``, gains taken in turn."""
    random = np.random.default_rng(seed)
    step = hfov_deg * (1 - overlap)
    shots = []
    for i in range(count):
        pitch, roll = random.uniform(-tilt_deg, tilt_deg, 2)
        pose = camera(f"cam{i}", (i - (count - 1) / 2) * step, pitch, roll, hfov_deg=hfov_deg, size=size, k1=k1, k2=k2)
        position = ((i - (count - 1) / 2) * spacing_m, 0.0, 0.0)
        shots.append(
            Shot(pose, gains[i % len(gains)], vignetting, noise, night, position, f"CAM {i + 1}" if overlay else "")
        )
    return Rig(world, tuple(shots))


def with_shot(rig: Rig, name: str, **changes: object) -> Rig:
    """The rig with one camera's shot changed."""
    shots = tuple(replace(s, **changes) if s.pose.name == name else s for s in rig.shots)  # type: ignore[arg-type]
    return replace(rig, shots=shots)


@dataclass(frozen=True)
class Error:
    """How far a calibration is from the truth."""

    seam_px: float
    """Worst distance in any overlap between what two placed cameras show of one direction, in pixels of a panorama
    that is as fine as the cameras."""
    focal: float
    """Largest relative error of a focal length."""
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)
    """The worst distance of each pair."""


def compare(found: Calibration, rig: Rig, grid: int = 40) -> Error:
    """Compare a calibration with the truth of the rig."""
    placed = {pose.name: pose for pose in found.cameras}
    shots = {shot.pose.name: shot for shot in rig.shots}
    pairs: dict[tuple[str, str], float] = {}
    for a, b in itertools.permutations(placed, 2):
        width, height = placed[a].width_px, placed[a].height_px
        pixels = np.stack(np.meshgrid(np.linspace(0, width - 1, grid), np.linspace(0, height - 1, grid)), axis=-1)
        distances = _distances(rig, (placed[a], shots[a]), (placed[b], shots[b]), pixels.reshape(-1, 2))
        if len(distances):
            key = (min(a, b), max(a, b))
            pairs[key] = max(pairs.get(key, 0.0), float(distances.max()))
    truth = rig.truth
    focal = max(abs(pose.focal_px / truth[name].focal_px - 1) for name, pose in placed.items())
    return Error(max(pairs.values(), default=0.0), focal, pairs)


def drawn_seam_px(found: Calibration, rig: Rig) -> float:
    """Return the worst distance as in :class:`Error`, but only where a panorama of everything changes cameras."""
    panorama = plan(found, *PANORAMA_PX, "fit")
    shots = {shot.pose.name: shot for shot in rig.shots}
    worst = 0.0
    for edge, owners in zip(panorama.edges_px[1:], itertools.pairwise(panorama.owners), strict=False):
        if None in owners:
            continue
        both = [found.cameras[owner] for owner in owners if owner is not None]
        maps = [source_maps(panorama, one, edge - 1, edge + 1) for one in both]
        seen = inside(both[0], *maps[0]) & inside(both[1], *maps[1])
        if not seen.any():
            continue  # the two only touch there
        for here, there in ((0, 1), (1, 0)):
            pixels = np.stack([axis[seen] for axis in maps[here]], axis=-1).astype(np.float64)
            a, b = both[here], both[there]
            worst = max(worst, *_distances(rig, (a, shots[a.name]), (b, shots[b.name]), pixels).tolist(), 0.0)
    return worst


def _distances(rig: Rig, a: tuple[CameraPose, Shot], b: tuple[CameraPose, Shot], pixels: Matrix) -> Matrix:
    """Return how far apart two placed cameras show what the first one shows at these pixels and the other sees too."""
    here, there = _same_things(rig, a[1], b[1], pixels)
    scale_px = float(np.median([shot.pose.focal_px for shot in rig.shots]))
    apart = np.linalg.norm(a[0].directions(here) - b[0].directions(there), axis=-1) * scale_px
    # A strong distortion leaves the outermost corners without a direction, so no panorama shows them.
    shown = np.isfinite(apart)
    return np.asarray(apart[shown] if (~shown).sum() <= CORNERS * len(apart) else np.nan_to_num(apart, nan=9999.0))


def _same_things(rig: Rig, a: Shot, b: Shot, here: Matrix) -> tuple[Matrix, Matrix]:
    """Return those of the first picture's pixels whose point the other one shows too, and its pixels there."""
    if rig.shown.get(a.pose.name, rig.world) is not rig.shown.get(b.pose.name, rig.world):
        return here[:0], here[:0]
    rays = a.pose.directions(here)
    targets = rays
    world = rig.shown.get(a.pose.name, rig.world)
    is_near = np.zeros(len(here), bool)
    if world.near is not None:
        hits = world.meet_near(rays, np.array(a.position_m))
        is_near = world.is_near(hits)
        targets = np.where(is_near[:, None], hits - np.array(b.position_m), rays)
    there = b.pose.project(targets)
    keep = np.isfinite(there).all(axis=-1)
    keep &= (there >= 0).all(axis=-1) & (there <= np.array([b.pose.width_px - 1, b.pose.height_px - 1])).all(axis=-1)
    if world.near is not None:
        # What the other camera sees there must not be hidden from it.
        back = world.meet_near(np.nan_to_num(targets), np.array(b.position_m))
        keep &= world.is_near(back) == is_near
    return here[keep], there[keep]
