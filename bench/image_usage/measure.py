"""Measures an image, a container or a folder, and makes its report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.image_usage import engine
from bench.image_usage.engine import Container, Image, docker
from bench.image_usage.errors import CannotMeasure
from bench.image_usage.layers import View, merge, scan
from bench.image_usage.observe import Contained, Observation, Work, observe
from bench.image_usage.packages import owners, reader
from bench.image_usage.rootfs import Rootfs
from bench.image_usage.unshared import unshared
from bench.image_usage.usage import Layer, Report, rows

Tell = Callable[[str], None]


def of_image(
    image: str,
    options: Sequence[str],
    command: Sequence[str],
    *,
    work: Work,
    base: str | None,
    tell: Tell,
    share_layers: bool = True,
) -> Report:
    """Run a container of an image, with the options of ``docker run``, and remove it.

    Args:
        image: Its name.
        options: Options of ``docker run``.
        command: Command line; without any, the image's own.
        work: What to watch.
        base: Name of the image that it was built from; None: find out.
        tell: Takes what is being done.
        share_layers: False: run a copy of the image with layers of its own.

    Raises:
        CannotMeasure: Something is missing or has failed.
    """
    found = engine.inspect_image(image)
    with contextlib.ExitStack() as ending:
        name = image
        if not share_layers:
            tell(f"copying {image}")
            name = ending.enter_context(unshared(image))
        container = engine.create(name, options, command)
        ending.callback(_remove, container)
        return _of_container(_with_folders_of(found, name), container, work, base, tell)


def _remove(container: Container) -> None:
    with contextlib.suppress(CannotMeasure):
        docker("rm", "--force", "--volumes", container.identity)


def of_container(name: str, work: Work, base: str | None, tell: Tell, *, copy_of: str | None = None) -> Report:
    """Stop and start a container, such as a service of compose, and leave it as it was: running or stopped.

    Args:
        name: Its name.
        work: What to watch.
        base: Name of the image that its image was built from; None: find out.
        tell: Takes what is being done.
        copy_of: Name of the image of which the container's image is a copy with layers of its own.

    Raises:
        CannotMeasure: Something is missing or has failed.
    """
    container = Container.named(name)
    # Remember the state, to leave the container as it was.
    ran = container.state()["Running"]
    if ran:
        docker("stop", container.identity)
    image = _name_of(container.image)
    try:
        return _of_container(
            _with_folders_of(engine.inspect_image(copy_of or image), image), container, work, base, tell
        )
    finally:
        # The user's container runs again, whatever the measurement did.
        if ran:
            docker("start", container.identity)


def _name_of(identity: str) -> str:
    tags = docker("image", "inspect", "--format", "{{range .RepoTags}}{{.}} {{end}}", identity).split()
    return tags[0] if tags else identity


def _with_folders_of(image: Image, copy: str) -> Image:
    return image if copy == image.name else replace(image, folders=engine.inspect_image(copy).folders, unshared=True)


def _of_container(image: Image, container: Container, work: Work, base: str | None, tell: Tell) -> Report:
    others = engine.other_images()
    base_name, base_layers, how = engine.base_of(image, base, others)
    tell(f"reading the layers of {image.name}")
    view = merge([scan(folder) for folder in image.folders])
    owner = owners(view, reader(view, list(image.folders)))
    seen = observe(Contained(container, image.folders), image.folders, view, work, tell)
    layers = tuple(
        Layer(
            digest,
            image.commands[number],
            # The base's layers come first, so the others are ours.
            number >= base_layers,
            tuple(
                name
                for name, theirs in others.items()
                if digest in theirs and theirs != image.layers and name != base_name and not image.unshared
            ),
        )
        for number, digest in enumerate(image.layers)
    )
    found = rows(view, owner, seen.seen, base_layers)
    service, sharers, remarks = _seen(seen)
    if image.unshared:
        remarks = ("a copy with layers of its own was measured", *remarks)
    return Report(image.name, base_name, how, layers, found, _told(work), service, sharers, remarks)


def of_rootfs(folder: Path, command: Sequence[str], work: Work, tell: Tell) -> Report:
    """Run a command in a folder that holds a root file system.

    Raises:
        CannotMeasure: Something is missing or has failed.
    """
    if not folder.is_dir():
        raise CannotMeasure(f"{folder} is not a folder")
    folder = folder.resolve()
    tell(f"reading {folder}")
    view: View = merge([scan(folder)])
    owner = owners(view, reader(view, [folder]))
    with Rootfs(folder, command).mounted() as subject:
        seen = observe(subject, [folder], view, work, tell)
    found = rows(view, owner, seen.seen, 0)
    layers = (Layer(str(folder), " ".join(command), ours=True, shared_with=()),)
    return Report(folder.name, "", "a folder has no layers", layers, found, _told(work), *_seen(seen))


def _told(work: Work) -> str:
    return work.commands[0] if work.commands else f"{work.lasts_s:g} s of its own command"


def _seen(seen: Observation) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    again = f"the engine has restarted it {seen.restarts} times" if seen.restarts else ""
    return seen.service, seen.sharers, (*seen.remarks, *filter(None, (again, seen.failure)))
