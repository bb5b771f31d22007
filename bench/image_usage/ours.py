"""Measures how much of our images their work uses: ``python -m bench.image_usage.ours [--folder FOLDER] [NAME …]``.

Each image is watched among the other services of its compose file, while a browser shows the page. What is watched is a
copy with layers of its own, because the page cache of the layers is shared with other containers. Further observations
are the runs beside the relay, the detector's run on a file, and the services' tests with ``--tests``.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.image_usage import measure, report, treemap
from bench.image_usage.engine import docker
from bench.image_usage.errors import CannotMeasure
from bench.image_usage.observe import Work
from bench.image_usage.unshared import unshared
from bench.image_usage.usage import Report, also

ROOT: Final = Path(__file__).resolve().parents[2]
STAND_IN: Final = ROOT / "tests/e2e/standins/rabbitmq.Dockerfile"
BROKER: Final = "rabbitmq:4-management"
BASE: Final = "python:3.11-slim-bookworm"
TRIALS: Final = 3
LOOKS_S: Final = 20.0
BUILD_S: Final = 1800.0
GROUP: Final = 2000
ALL: Final = "framebus"
"""The container with all services, of compose.single.yaml."""
IMAGES: Final = {ALL: "all"}
"""Names of images that differ from the names of their services."""
CLIP: Final = ROOT / "services/simulator/footage/pedestrians.mp4"
MODEL: Final = ROOT / "models/default"


@dataclass(frozen=True)
class Stack:
    """A compose project, and the services whose images are measured in it."""

    name: str
    files: tuple[str, ...]
    services: tuple[str, ...]
    further: tuple[str, ...] = ()
    """Services whose runs here are further observations of images that another stack measures."""

    @property
    def file_arguments(self) -> list[str]:
        """Arguments of ``docker compose`` that name the files."""
        return [argument for file in self.files for argument in ("-f", str(ROOT / file))]


STACKS: Final = (
    Stack("relay", ("compose.yaml", "compose.relay.yaml"), ("relay",), further=("detector", "streamer", ALL)),
    Stack("pipeline", ("compose.yaml",), ("stitcher", "detector", "streamer", "simulator")),
    Stack("single", ("compose.single.yaml",), (ALL,)),
)
"""Stacks with further observations come before those that the figures are of."""
TESTED: Final = ("stitcher", "detector", "streamer", "relay")
"""Services whose tests are also run in their images, with ``--tests``."""
TESTS_S: Final = 1800.0
PYTEST: Final = """\
import sys
sys.path.append("/dev-packages")  # after the image's own packages
import pytest
arguments = ["--continue-on-collection-errors", "-p", "no:cacheprovider", "-m", "not slow and not long and not docker"]
sys.exit(pytest.main([sys.argv[1], "--quiet", *arguments]))
"""


class Project:
    """A running stack, with its own names and ports."""

    def __init__(self, stack: Stack, secret: Path) -> None:
        self._secret = secret
        self._files = stack.file_arguments
        self._name = f"image-usage-{secrets.token_hex(4)}"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._environment = {
            **os.environ,
            "FRAMEBUS_PORT": str(port),
            "FRAMEBUS_BROKER_PORT": str(_free_port()),
            # Names and ports of its own, so that a stack of the user on the same engine keeps running.
            "FRAMEBUS_HOLDER": f"{self._name}-holder",
            "FRAMEBUS_SINGLE": f"{self._name}-single",
            "FRAMEBUS_BROKER_SECRET": str(secret),
            "FRAMEBUS_RELAY__POLICY": "work",
            "FRAMEBUS_RELAY__TARGET_FPS": "1",
            "FRAMEBUS_STREAMER__BOXES_MAX_AGE_S": "60",
        }

    def compose(self, *arguments: str, timeout_s: float = 600.0) -> str:
        """Run a command of compose.

        Raises:
            CannotMeasure: The command failed; the text is the end of what it printed.
        """
        command = ["docker", "compose", "-p", self._name, *self._files, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        if done.returncode:
            raise CannotMeasure(f"docker compose {arguments[0]} failed: {done.stderr.strip()[-400:]}")
        return done.stdout

    def measure_all_in_one(self, lasts_s: float) -> Report:
        """Watch one container with all services, the relay among them; of this stack, only the broker keeps running."""
        running = self.compose("ps", "--services").split()
        self.compose("stop", *(service for service in running if service != "rabbitmq"))
        port = _free_port()
        settings = {
            "SUPERVISOR__SERVICES": json.dumps(["simulator", "stitcher", "detector", "streamer", "relay"]),
            "STREAMER__HOST": "0.0.0.0",
            "STREAMER__PORT": str(port),
            "STREAMER__DETECTIONS": "both",
            "BROKER__URL": "amqp://rabbitmq",
            "BROKER__USERNAME": "framebus",
            "BROKER__PASSWORD_FILE": "/run/secrets/broker",
            "STORAGE__URL": "file:///var/lib/framebus/objects",
            "RELAY__SPOOL": "/var/lib/framebus/spool",
        }
        options = [
            *("--network", f"{self._name}_broker", "--publish", f"127.0.0.1:{port}:{port}", "--shm-size", "256m"),
            *(argument for name, value in settings.items() for argument in ("--env", f"FRAMEBUS_{name}={value}")),
            *("--volume", f"{self._secret}:/run/secrets/broker:ro", "--volume", f"{MODEL}:/app/models/default:ro"),
        ]
        work = f"{sys.executable} -m bench.image_usage.view http://127.0.0.1:{port} {lasts_s:g}"
        return measure.of_image(
            _image(IMAGES[ALL]), options, [], work=Work((work,)), base=BASE, tell=_tell, share_layers=False
        )

    def start(self) -> None:
        """Start all services. Retry, because on a busy machine a health check that services wait for may time out."""
        for trial in range(TRIALS):
            try:
                self.compose("up", "--detach")
            except CannotMeasure:
                if trial == TRIALS - 1:
                    raise
            else:
                return

    def measure(self, service: str, lasts_s: float) -> Report:
        """Watch one of its containers, made from an image with layers of its own, while the others continue."""
        work = f"{sys.executable} -m bench.image_usage.view {self.url} {lasts_s:g}"
        image = _image(IMAGES.get(service, service))
        _tell(f"copying {image}")
        with unshared(image) as copy, tempfile.NamedTemporaryFile("w", suffix=".json") as override:
            json.dump({"services": {service: {"image": copy}}}, override)
            override.flush()
            start = ("up", "--detach", "--no-deps", "--no-build", service)
            self.compose("-f", override.name, *start)
            try:
                identity = self.compose("ps", "-q", service).strip()
                return measure.of_container(identity, Work((work,)), BASE, _tell, copy_of=image)
            finally:
                self.compose(*start)


def _build() -> None:
    """Build the images of all stacks."""
    for stack in STACKS:
        _tell(f"building the images of {stack.name}")
        docker(
            "compose", "--project-directory", str(ROOT), *stack.file_arguments, "build", "--quiet", timeout_s=BUILD_S
        )


@contextmanager
def running(stack: Stack, folder: Path) -> Iterator[Project]:
    """Start a stack, and remove it at the end."""
    # Each run has a secret of its own: two runs into one folder would remove each other's.
    secret = folder / f"broker-{secrets.token_hex(4)}.secret"
    secret.write_text(f"{secrets.token_hex(24)}\n")
    secret.chmod(0o640)
    os.chown(secret, -1, GROUP)
    project = Project(stack, secret)
    try:
        _tell(f"starting {stack.name}")
        project.start()
        yield project
    finally:
        # Also when the start failed, because some containers may run by then.
        project.compose("--profile", "*", "down", "-v", "-t", "2", "--remove-orphans")
        secret.unlink(missing_ok=True)


@contextmanager
def broker_image() -> Iterator[None]:
    """If the broker's image cannot be pulled, give its name to an image of Debian's server, until the end."""
    made = not docker("images", "--quiet", BROKER).strip() and not _pulls(BROKER)
    if made:
        with STAND_IN.open() as dockerfile:
            subprocess.run(
                ["docker", "build", "--quiet", "--tag", BROKER, "-"], stdin=dockerfile, check=True, capture_output=True
            )
    yield
    if made:
        docker("rmi", BROKER)


def _pulls(image: str) -> bool:
    try:
        docker("pull", "--quiet", image, timeout_s=600)
    except CannotMeasure:
        return False
    return True


def detector_on_a_file(lasts_s: float) -> Report:
    """Run the detector on a video file, without a network."""
    options = [
        *("--network", "none", "--env", "FRAMEBUS_DETECTOR__SOURCE=file:///clip.mp4"),
        *("--volume", f"{CLIP}:/clip.mp4:ro", "--volume", f"{MODEL}:/app/models/default:ro"),
    ]
    return measure.of_image(
        _image("detector"), options, [], work=Work((), lasts_s), base=BASE, tell=_tell, share_layers=False
    )


def _image(name: str) -> str:
    return f"framebus/{name}:{os.environ.get('FRAMEBUS_TAG', 'latest')}"


def tests_in(service: str) -> Report:
    """Run a service's own tests in its image, with this environment's packages for what the image does not have."""
    packages = sysconfig.get_path("purelib")
    mounts = {
        ROOT / "tests": "/app/tests",
        ROOT / "services/simulator": "/app/services/simulator",
        ROOT / "pyproject.toml": "/app/pyproject.toml",
        Path(packages): "/dev-packages",
    }
    # Read-only, so that the tests cannot change this checkout.
    options = [argument for here, there in mounts.items() for argument in ("--volume", f"{here}:{there}:ro")]
    command = ["python", "-c", PYTEST, f"tests/services/{service}"]
    return measure.of_image(
        _image(service), [*options, "--user", "root"], command, work=Work((), TESTS_S), base=BASE, tell=_tell,
        share_layers=False,
    )  # fmt: skip


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _tell(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def _write(found: Report, folder: Path, name: str) -> None:
    (folder / f"{name}.json").write_text(json.dumps(report.as_json(found), indent=1))
    (folder / f"{name}.svg").write_text(treemap.svg(found))
    (folder / f"{name}.txt").write_text(report.text(found) + "\n")


def _joined(found: Report, name: str, other: Report) -> Report:
    return replace(found, rows=also(found.rows, name, other.opened_paths()))


def measure_all(names: Sequence[str], folder: Path, lasts_s: float, *, tests: bool, build: bool) -> list[Report]:
    """Measure the images of these services, or of all; write a report, JSON and a picture for each into the folder."""
    reports: list[Report] = []
    further: dict[str, dict[str, Report]] = {}
    if build:
        _build()
    for stack in STACKS:
        wanted = {one for one in (*stack.services, *stack.further) if not names or {one, stack.name} & {*names}}
        if not wanted:
            continue
        with running(stack, folder) as project:
            measured = {}
            for service in [one for one in stack.services if one in wanted]:
                measured[service] = project.measure(service, lasts_s)
                _write(measured[service], folder, service)  # written now, because what follows may fail
            # Last of all, because the container with all services stops most of the others.
            for service in [one for one in stack.further if one in wanted]:
                found = project.measure_all_in_one(lasts_s) if service == ALL else project.measure(service, lasts_s)
                # The figures are those of the other stack; this run only adds files that were opened here.
                further.setdefault(service, {})[f"beside the {stack.name}"] = found
                _write(found, folder, f"{service}-beside-the-{stack.name}")
        if "detector" in measured:
            further.setdefault("detector", {})["on a file"] = detector_on_a_file(lasts_s)
            _write(further["detector"]["on a file"], folder, "detector-on-a-file")
        for service, alone in measured.items():
            if tests and service in TESTED:
                further.setdefault(service, {})["its tests"] = tests_in(service)
                _write(further[service]["its tests"], folder, f"{service}-tests")
            found = alone
            for name, other in further.get(service, {}).items():
                found = _joined(found, name, other)
            _write(found, folder, service)
            reports.append(found)
            print(report.text(found), end="\n\n", flush=True)
    return reports


def main() -> int:
    """Measure the named images, and print a line for each at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.image_usage.ours", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="relay, pipeline, single, or one of their services; default: all"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench/image-usage", help="where reports are written")
    parser.add_argument(
        "--for", type=float, default=LOOKS_S, dest="lasts_s", metavar="SECONDS", help="with the page open"
    )
    parser.add_argument("--tests", action="store_true", help="run the services' tests in their images as further "
                        "observations")  # fmt: skip
    parser.add_argument("--no-build", action="store_false", dest="build", help="measure the images that are there")
    options = parser.parse_args()
    # End by an exception on SIGTERM too, so that every stack is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        with broker_image():
            reports = measure_all(
                options.names, options.folder, options.lasts_s, tests=options.tests, build=options.build
            )
    except CannotMeasure as error:
        print(f"image usage: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    for one in reports:
        print(one.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
