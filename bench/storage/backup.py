"""Backs up, restores and prunes the calibration's volume: runs the commands of the page on a second engine."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.storage.engine import Engine, engine, saved
from bench.storage.figures import FigureTable, NotHere
from bench.storage.form import BASE, Form
from bench.storage.mounts import command

NAME: Final = "backup"
VOLUME: Final = "framebus_calibration"
OWNER: Final = "1001:2000"
CONTENT: Final = "{}"
RUN: Final = f'docker run --rm --network none --user 0 --volume {VOLUME}:/volume --volume "$PWD:/backup"'
BACK_UP: Final = f"{RUN} {BASE} tar -C /volume -czf /backup/calibration.tar.gz ."
RESTORE: Final = f"{RUN} {BASE} tar -C /volume -xzpf /backup/calibration.tar.gz --numeric-owner"
LIST_UNUSED: Final = "docker volume ls --quiet --filter dangling=true"
PRUNE: Final = "docker volume prune --force"
KEEP: Final = "docker volume prune --force --filter label!=keep"
COMMANDS: Final = {"back up": BACK_UP, "restore": RESTORE, "list what no container uses": LIST_UNUSED, "prune": PRUNE}


class Shell:
    """Runs the page's commands on an engine."""

    def __init__(self, ours: Engine, folder: Path) -> None:
        self._ours = ours
        self._folder = folder

    def __call__(self, line: str) -> str:
        """Run a command; return what it printed.

        Raises:
            NotHere: The command failed.
        """
        return command("env", f"DOCKER_HOST={self._ours.host}", "sh", "-c", line, directory=self._folder)

    def content(self) -> str:
        """Return the owner and the content of the calibration in the volume; empty if there is none."""
        program = "stat -c %u:%g /volume/calibration.json; cat /volume/calibration.json"
        try:
            return " ".join(self(f"{RUN} {BASE} sh -c '{program}'").split("\n"))
        except (NotHere, subprocess.SubprocessError):
            return ""


def measure(form: Form, place: Path) -> list[FigureTable]:
    """Return the table of commands and of what the volume holds after each."""
    del form
    found = FigureTable("The calibration's volume, on a second engine", "what the volume held before")
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(saved(BASE, place))
            ours = stack.enter_context(engine(place / "engine", "overlay2"))
            ours.load(archive)
            tried(Shell(ours, place), found)
        except NotHere as error:
            found.row("back up").note = str(error)
    return [found]


def tried(shell: Shell, found: FigureTable) -> None:
    """Run the commands one after another, and note what the volume holds after each."""
    write = f"echo {CONTENT} >/volume/calibration.json; chown {OWNER} /volume /volume/calibration.json"
    shell(f"docker volume create {VOLUME} && {RUN} {BASE} sh -c '{write}'")
    # What was written is compared as the volume shows it, with its owner.
    before = shell.content()
    shell(BACK_UP)
    found.row("back up").note = f"the volume holds {before}"
    shell(f"docker volume rm {VOLUME}")
    shell(RESTORE)
    found.row("restore into a new volume").note = "the same" if shell.content() == before else "not the same"
    unused = shell(LIST_UNUSED).split()
    found.row("list what no container uses").note = "it is listed" if VOLUME in unused else "it is not listed"
    shell(f"docker create --name held --network none --volume {VOLUME}:/volume {BASE} true")
    shell(PRUNE)
    found.row("prune while a container has it").note = "it stays" if shell.content() == before else "it is gone"
    shell("docker rm held")
    shell(PRUNE)
    found.row("prune after the container is removed").note = "it stays" if shell.content() == before else "it is gone"
    # A second volume, because the first has been pruned by now.
    shell(f"docker volume create --label keep {VOLUME}_2")
    shell(KEEP)
    left = shell("docker volume ls --quiet").split()
    found.row("prune of what has no label `keep`").note = "it stays" if f"{VOLUME}_2" in left else "it is gone"
