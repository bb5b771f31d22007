"""Measures how much of an image its work uses: ``python -m bench.image_usage IMAGE [-- OPTIONS [-- COMMAND]]``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.image_usage import measure, report, treemap
from bench.image_usage.errors import CannotMeasure
from bench.image_usage.observe import Work
from bench.image_usage.usage import Report, also

EPILOG = """\
examples, as root:
  python -m bench.image_usage redis:7                                   ten seconds of the image's own command
  python -m bench.image_usage nginx -- -p 8080:80                       with options of docker run
  python -m bench.image_usage python:3.11 -- -- python -c 'import ssl'  with a command of its own
  python -m bench.image_usage --container NAME --during './tests.sh'    an existing container, such as a service of
                                                                        compose; it is stopped, and started again
  python -m bench.image_usage --rootfs FOLDER -- -- /usr/sbin/nginx     an unpacked 'docker export'

A command of --during finds the container's identity in $CONTAINER, or the folder in $ROOTFS.
"""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return the options, those of ``docker run``, and the command."""
    own, options, command = _split(list(arguments))
    parser = argparse.ArgumentParser(
        prog="python -m bench.image_usage", description="how much of a container image its work uses",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [OPTION …] IMAGE|--container NAME|--rootfs FOLDER [-- OPTIONS OF docker run [-- COMMAND]]",
    )  # fmt: skip
    parser.add_argument("image", nargs="?", metavar="IMAGE")
    parser.add_argument("--container", metavar="NAME", help="an existing container instead of an image")
    parser.add_argument("--rootfs", type=Path, metavar="FOLDER", help="a folder with a root file system")
    parser.add_argument("--unshared", action="store_true", help="measure a copy of the image with layers of its own, "
                        "so that other containers' use of the same pages is not counted")  # fmt: skip
    parser.add_argument("--base", metavar="IMAGE", help="whose layers are not ours; by default the longest image here "
                        "whose layers are the image's first")  # fmt: skip
    parser.add_argument("--during", action="append", default=[], metavar="COMMAND", help="the work to watch, in a "
                        "shell of this host; each further one is another observation, such as the tests")  # fmt: skip
    parser.add_argument("--for", type=float, default=10.0, dest="lasts_s", metavar="SECONDS", help="how long to watch "
                        "without --during, 10 by default")  # fmt: skip
    parser.add_argument("--also", type=Path, action="append", default=[], metavar="JSON", help="a report of another "
                        "run as a further observation")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw a treemap")
    parser.add_argument(
        "--fail-under", type=float, metavar="PERCENT", help="exit with 1 if less of our layers is opened"
    )
    parsed = parser.parse_args(own)
    if sum(one is not None for one in (parsed.image, parsed.container, parsed.rootfs)) != 1:
        parser.error("name one of an image, --container or --rootfs")
    if parsed.container and (options or command):
        parser.error("a container has its options already")
    if parsed.unshared and not parsed.image:
        parser.error("--unshared takes an image: name it instead of a container or a folder")
    # The container must exist before it starts, to be watched from its first program on, and after its end.
    if {"--rm", "-d", "--detach"}.intersection(options):
        parser.error("the container is started apart and removed at the end: leave --rm and --detach out")
    if parsed.rootfs and (options or not command):
        parser.error("a folder takes no options of docker run, and a command: --rootfs FOLDER -- -- COMMAND")
    return parsed, options, command


def _split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    parts: list[list[str]] = [[], [], []]
    index = 0
    for argument in arguments:
        # The third part is the command, which may contain "--" itself.
        if argument == "--" and index < 2:
            index += 1
        else:
            parts[index].append(argument)
    return parts[0], parts[1], parts[2]


def measured(parsed: argparse.Namespace, options: list[str], command: list[str]) -> Report:
    """Measure the image, the container or the folder that the options name.

    Raises:
        CannotMeasure: Something is missing or has failed.
    """
    # Ask for root first, so that nothing has to be undone.
    if os.geteuid():
        raise CannotMeasure("fanotify, the layers' folders and reading ahead need root: run this with sudo")
    work = Work(tuple(parsed.during), parsed.lasts_s)
    if parsed.rootfs:
        found = measure.of_rootfs(parsed.rootfs, command, work, _tell)
    elif parsed.container:
        found = measure.of_container(parsed.container, work, parsed.base, _tell)
    else:
        found = measure.of_image(
            parsed.image,
            options,
            command,
            work=work,
            base=parsed.base,
            tell=_tell,
            share_layers=not parsed.unshared,
        )
    return found


def with_others(found: Report, paths: Sequence[Path]) -> Report:
    """Add the observations of saved reports.

    Raises:
        CannotMeasure: A report cannot be read.
    """
    for path in paths:
        try:
            _, opened = report.opened_in(path.read_text())
        except (OSError, ValueError) as error:
            raise CannotMeasure(f"{path} is not a report of this program: {error}") from None
        found = replace(found, rows=also(found.rows, path.name, opened))
    return found


def _tell(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, then print and write the report; return the exit status."""
    parsed, options, command = parse(sys.argv[1:] if arguments is None else arguments)
    # End by an exception on SIGTERM too, so that the kernel's settings are restored and the container is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = with_others(measured(parsed, options, command), parsed.also)
    except CannotMeasure as error:
        print(f"image usage: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if parsed.json:
        parsed.json.write_text(json.dumps(report.as_json(found), indent=1))
    if parsed.svg:
        parsed.svg.write_text(treemap.svg(found))
    print(report.text(found))
    percent = found.ours.opened * 100
    if parsed.fail_under is not None and percent < parsed.fail_under:
        print(f"image usage: {percent:.1f} % is opened, less than {parsed.fail_under:g} %", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
