"""Brings M bundles to N services: as layers of each image, volumes filled from data-only images, or mounted folders."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.storage.engine import Engine, engine, saved
from bench.storage.figures import FigureTable, NotHere, take_turns
from bench.storage.form import BASE, Form
from bench.storage.mounts import MIB, loop_disk, used_bytes
from bench.storage.residency import shared_part

NAME: Final = "bundles"
DISK_MIB: Final = 16 * 1024
FILE: Final = "/bundle/model"


class Bundles:
    """Services and bundles on an engine, which are built again in each round."""

    def __init__(self, ours: Engine, folder: Path, form: Form) -> None:
        self.ours = ours
        self._folder = folder
        self._form = form
        self._round = 0

    def services(self) -> list[str]:
        """Build the services' images with new code, and return their tags."""
        tags = []
        for number in range(self._form.services):
            here = self._fresh(f"service{number}")
            # Random content, so that no layer equals one of the round before.
            (here / "code").write_bytes(os.urandom(1024))
            (here / "Dockerfile").write_text(f"FROM {BASE}\nCOPY code /code\n")
            self.ours.build(here, f"service{number}")
            tags.append(f"service{number}")
        return tags

    def models(self) -> list[Path]:
        """Write new bundles."""
        self._round += 1
        made = []
        for number in range(self._form.models):
            here = self._fresh(f"model{number}")
            (here / "bundle").mkdir()
            with (here / "bundle" / "model").open("wb") as file:
                for _ in range(0, self._form.bundle_bytes, MIB):
                    # Random bytes, as weights are: they do not compress.
                    file.write(os.urandom(MIB))
            made.append(here)
        return made

    def _fresh(self, name: str) -> Path:
        here = self._folder / name
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        return here

    def with_layers(self, services: Sequence[str], models: Sequence[Path]) -> list[str]:
        """Build an image of every service with every bundle."""
        tags = []
        for service in services:
            for model in models:
                (model / "Dockerfile").write_text(f"FROM {service}\nCOPY bundle /bundle\n")
                tags.append(f"{service}-{model.name}")
                self.ours.build(model, tags[-1])
        return tags

    def data_only(self, models: Sequence[Path]) -> list[str]:
        """Build an image that contains only the bundle, for each bundle, and fill a volume of the same name from it."""
        for model in models:
            (model / "Dockerfile").write_text("FROM scratch\nCOPY bundle /bundle\n")
            self.ours.build(model, model.name)
            container = self.ours.docker("create", "--volume", f"{model.name}:/bundle", model.name, "none").strip()
            self.ours.docker("rm", container)
        return [model.name for model in models]

    def start_ms(self, image: str, *mount: str) -> float:
        """Return how long a container takes from its start to the end of ``true``."""
        begun_s = time.perf_counter()
        self.ours.run(*mount, image, "true")
        return (time.perf_counter() - begun_s) * 1e3

    def shared(self, first: Sequence[str], second: Sequence[str]) -> float:
        """Return the part of a bundle that a second service finds in memory after a first has read it."""
        return shared_part(self.ours, FILE, first, second)

    def registry_bytes(self, images: Sequence[str]) -> int:
        """Return the bundles' bytes in a registry, which keeps each distinct layer once."""
        # The bundle is the last layer. Equal layers are one blob in a registry.
        last = {self.ours.inspect("--type", "image", image)["RootFS"]["Layers"][-1] for image in images}
        return len(last) * self._form.bundle_bytes

    def remove(self, images: Sequence[str], volumes: Sequence[str] = ()) -> None:
        """Remove the images and volumes of a round, and the builder's cache."""
        self.ours.docker("rmi", "--force", *images)
        if volumes:
            self.ours.docker("volume", "rm", *volumes)
        self.forget_builds()

    def forget_builds(self) -> None:
        """Remove the builder's cache, which keeps a copy of each build context; layers of images stay."""
        self.ours.docker("builder", "prune", "--all", "--force")


def _layers(bundles: Bundles, disk: Path, can_drop: bool) -> dict[str, float]:
    services, models = bundles.services(), bundles.models()
    before = used_bytes(disk)
    begun_s = time.perf_counter()
    tags = bundles.with_layers(services, models)
    figures = {"build, s": time.perf_counter() - begun_s}
    bundles.forget_builds()
    figures["stored by the engine, MB"] = (used_bytes(disk) - before) / 1e6
    figures["in a registry, MB"] = bundles.registry_bytes(tags) / 1e6
    figures["start, ms"] = bundles.start_ms(tags[0])
    if can_drop:
        other = f"{services[1]}-{models[0].name}"
        figures["page cache shared by two services"] = bundles.shared([tags[0]], [other])
    begun_s = time.perf_counter()
    bundles.with_layers(bundles.services(), models)
    figures["after a change of the services, s"] = time.perf_counter() - begun_s
    bundles.remove([*tags, *services])
    return figures


def _volumes(bundles: Bundles, disk: Path, can_drop: bool, keep_image: bool) -> dict[str, float]:
    services, models = bundles.services(), bundles.models()
    before = used_bytes(disk)
    begun_s = time.perf_counter()
    tags = bundles.data_only(models)
    figures = {"build, s": time.perf_counter() - begun_s}
    figures["in a registry, MB"] = bundles.registry_bytes(tags) / 1e6
    if not keep_image:
        bundles.remove(tags)
    # The cache holds a copy of the build context, which would count as stored.
    bundles.forget_builds()
    figures["stored by the engine, MB"] = (used_bytes(disk) - before) / 1e6
    mount = ("--volume", f"{tags[0]}:/bundle:ro")
    figures["start, ms"] = bundles.start_ms(services[0], *mount)
    if can_drop:
        figures["page cache shared by two services"] = bundles.shared([*mount, services[0]], [*mount, services[1]])
    begun_s = time.perf_counter()
    bundles.services()
    figures["after a change of the services, s"] = time.perf_counter() - begun_s
    bundles.remove([*services, *(tags if keep_image else ())], tags)
    return figures


def _binds(bundles: Bundles, disk: Path, can_drop: bool) -> dict[str, float]:
    services, models = bundles.services(), bundles.models()
    before = used_bytes(disk)
    folder = disk / "models"
    begun_s = time.perf_counter()
    for model in models:
        shutil.copytree(model / "bundle", folder / model.name)
    figures = {"build, s": time.perf_counter() - begun_s}
    figures["stored by the engine, MB"] = (used_bytes(disk) - before) / 1e6
    figures["in a registry, MB"] = 0.0
    mount = ("--volume", f"{folder / models[0].name}:/bundle:ro")
    figures["start, ms"] = bundles.start_ms(services[0], *mount)
    if can_drop:
        figures["page cache shared by two services"] = bundles.shared([*mount, services[0]], [*mount, services[1]])
    begun_s = time.perf_counter()
    bundles.services()
    figures["after a change of the services, s"] = time.perf_counter() - begun_s
    bundles.remove(services)
    shutil.rmtree(folder)
    return figures


def measure(form: Form, place: Path) -> list[FigureTable]:
    """Return the table of the ways to bring bundles to services."""
    size_mb = form.bundle_bytes / 1e6
    found = FigureTable(
        f"{form.services} services and {form.models} bundles of {size_mb:.0f} MB",
        "layers in the image",
        text="After a change of the services: the images of the services and what is built on them, without the cache.",
    )
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(saved(BASE, place))
            disk = stack.enter_context(loop_disk(place / "loop", "ext4", DISK_MIB))
            ours = stack.enter_context(engine(place / "engine", "overlay2", disk / "data"))
            ours.load(archive)
        except NotHere as error:
            found.row("layers in the image").note = str(error)
            return [found]
        bundles = Bundles(ours, place / "build", form)
        ways: dict[str, Callable[[], dict[str, float]]] = {
            "layers in the image": lambda: _layers(bundles, disk, form.may_drop_caches),
            "volumes filled from data-only images": lambda: _volumes(bundles, disk, form.may_drop_caches, True),
            "the same, data-only images removed": lambda: _volumes(bundles, disk, form.may_drop_caches, False),
            "bind mounts": lambda: _binds(bundles, disk, form.may_drop_caches),
        }
        take_turns(found, ways, form.engine_rounds)
    found.row("`type: image` of compose").note = (
        "not in this engine: it needs Docker Engine 28. On paper: the layer itself is mounted read-only, so its bytes "
        "are stored once, and all services share its pages"
    )
    return [found]
