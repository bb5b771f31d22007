"""The sdist and the wheels: their content and metadata, and the README's programs run with them."""

from __future__ import annotations

import configparser
import contextlib
import email
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement

import framebus
from tests.examples import pieces, runs, tutorial
from tests.examples.terminals import Desk, terminal_commands
from tests.support import ROOT, files_of, lacks

pytestmark = pytest.mark.slow

Run = Callable[[list[str], Path, dict[str, str]], None]
VERSIONS: Final = ("3.11", "3.12", "3.13")
"""The Python versions that the classifiers claim."""
PYRIGHT: Final = "basedpyright==1.40.2"
"""Pyright as a wheel, with the runtime that it needs."""
ADDRESS: Final = "https://git.example.org/framebus"
LEFTOVERS: Final = (
    ".bench/run.json",
    ".cache/simulator/clip.mp4",
    ".venv/bin/python",
    "examples/c-reader/reader",
    "framebus/__pycache__/ring.cpython-311.pyc",
    "framebus/ring/_ring_c.abi3.so",
    "services/build/lib/services/__init__.py",
    "services/framebus_services.egg-info/PKG-INFO",
    "services/stitcher/rendering/_warp_c.abi3.so",
    "tests/__pycache__/support.cpython-311.pyc",
)
"""Files that builds and tests leave in a checkout, and that the sdist must not contain."""
SERVICES: Final = ("detector", "relay", "simulator", "stitcher", "streamer", "supervisor")
"""What framebus-services has an entry point, a console script and an extra for."""
STREAM: Final = "camera"
"""The stream of the README's programs."""
LINE: Final = re.compile(r"frame (\d+): number (\d+), bar at (\d+), skipped (\d+)\n")


def source_files() -> set[str]:
    """Return the files of this checkout or unpacked sdist, including new ones that git does not ignore."""
    if (ROOT / ".git").exists():
        if shutil.which("git") is None:
            lacks("no git here to list the checkout's files: apt-get install git")
        command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    else:
        listed = (ROOT / "framebus.egg-info/SOURCES.txt").read_text().splitlines()
    return {file for file in listed if (ROOT / file).is_file() and not is_made_by_setuptools(file)}


def is_made_by_setuptools(file: str) -> bool:
    """Return whether setuptools adds this file to an sdist."""
    return file in ("PKG-INFO", "setup.cfg") or file.startswith("framebus.egg-info/")


def build(tree: Path, output: Path, *options: str, **environment: str) -> None:
    """Run ``python -m build`` with the installed setuptools, so that it needs no registry."""
    # The check of dependencies starts setuptools once more for each file that is built.
    how = ["--no-isolation", "--skip-dependency-check"]
    command = [sys.executable, "-m", "build", *how, "--outdir", str(output), *options, str(tree)]
    done = subprocess.run(
        command,
        env=quiet_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def quiet_environment(**more: str) -> dict[str, str]:
    """Return the environment for pip and build, whose warnings must not be errors."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}, **more}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a checkout that has leftovers, and the wheel built from that sdist."""
    tree = tmp_path_factory.mktemp("tree")
    for file in source_files():
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, tree / file)
    for file in LEFTOVERS:
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_bytes(b"left over")
    output = tmp_path_factory.mktemp("dist")
    build(tree, output)
    return output


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The wheel built with a compiler."""
    (found,) = dist.glob("*.whl")
    if found.name.endswith("none-any.whl"):
        lacks("the wheel was built without the compiled steps: install a C compiler and Python's headers")
    return found


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    (sdist,) = dist.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"framebus-{framebus.__version__}"


@pytest.fixture(scope="module")
def pure_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built without a compiler, in a folder where an earlier build left its module."""
    module = (
        unpacked / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/framebus/ring/_ring_c.abi3.so"
    )
    module.parent.mkdir(parents=True)
    module.write_bytes(b"of an earlier build")
    output = tmp_path_factory.mktemp("pure")
    build(unpacked, output, "--wheel", CC="/bin/false")
    (found,) = output.iterdir()
    return found


@pytest.fixture(scope="module")
def services_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the services, built with a compiler from an sdist of its own."""
    output = tmp_path_factory.mktemp("services")
    build(unpacked / "services", output)
    (found,) = output.glob("*.whl")
    if found.name.endswith("none-any.whl"):
        lacks("the wheel was built without the compiled renderer: install a C compiler and Python's headers")
    return found


@pytest.fixture(scope="module")
def pure_services_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the services built without a compiler."""
    output = tmp_path_factory.mktemp("pure_services")
    build(unpacked / "services", output, "--wheel", CC="/bin/false")
    (found,) = output.iterdir()
    return found


def names_in(wheel: Path) -> set[str]:
    """Return the names of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(wheel: Path) -> Message:
    """Return a wheel's metadata, whose payload is the description."""
    return email.message_from_bytes(metadata_file(wheel, "METADATA"))


def metadata_file(wheel: Path, name: str) -> bytes:
    """Return a file of the wheel's dist-info folder."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"{wheel.name.partition('-')[0]}-{framebus.__version__}.dist-info/{name}")


def tags_in(wheel: Path) -> list[str]:
    """Return the tags in the wheel's WHEEL file."""
    return re.findall(r"^Tag: (.*)$", metadata_file(wheel, "WHEEL").decode(), re.MULTILINE)


def description_in(metadata: Message) -> str:
    """Return the long description."""
    content = metadata.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode()


def links_in(markdown: str) -> list[str]:
    """Return the targets of links and images outside code blocks, in Markdown and in HTML."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    referenced = re.findall(r"^\s*\[[^\]]+\]:\s*(\S+)", text, re.MULTILINE)
    return inline + referenced + re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]+)", text)


def is_absolute(link: str) -> bool:
    """Return whether the link names a host."""
    return re.match(r"https?://[^/]+", link) is not None


def readme_programs() -> tuple[str, str]:
    """Return the publisher and the subscriber of the README's first screen."""
    publisher, subscriber = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )[:2]
    return publisher, subscriber


@pytest.mark.long
def test_the_sdist_has_what_a_checkout_has_and_no_leftovers(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {file for file in files if not is_made_by_setuptools(file)} == source_files()
    assert {"framebus/ring/_ring_c.c", "framebus/py.typed", "tests/framebus/test_packaging.py"} <= files


@pytest.mark.long
def test_the_tests_run_in_the_unpacked_sdist(unpacked: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:  # instead of compiling it again
        archive.extract("framebus/ring/_ring_c.abi3.so", unpacked)
    tests = ["tests/framebus/ring/test_layout.py", "tests/framebus/ring/test_rings.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed", done.stdout.splitlines()[-1])


def test_the_wheel_is_for_the_stable_abi(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_")
    assert wheel.name == f"framebus-{framebus.__version__}-cp311-abi3-{platform}.whl"
    assert tags_in(wheel) == [f"cp311-abi3-{platform}"]
    assert "framebus/ring/_ring_c.abi3.so" in names_in(wheel)


@pytest.mark.long
def test_a_wheel_without_the_module_is_tagged_as_pure_python(pure_wheel: Path) -> None:
    assert pure_wheel.name == f"framebus-{framebus.__version__}-py3-none-any.whl"
    assert tags_in(pure_wheel) == ["py3-none-any"]
    assert not [name for name in names_in(pure_wheel) if name.endswith(".so")]


def test_the_wheel_contains_only_the_library(wheel: Path) -> None:
    names = names_in(wheel)
    assert {name.partition("/")[0] for name in names} == {"framebus", f"framebus-{framebus.__version__}.dist-info"}
    assert "framebus/py.typed" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "framebus").rglob("*.py*") if path.suffix != ".pyc"}
    assert {name for name in names if name.endswith((".py", ".pyi"))} == modules
    assert not [name for name in names if name.endswith(".c")]


def test_the_library_has_no_extra_for_what_it_does_not_hold(wheel: Path) -> None:
    assert metadata_of(wheel).get_all("Provides-Extra") == ["snapshot", "bench", "docs", "tidy", "dev"]


@pytest.mark.long
def test_the_wheel_of_the_services_has_them_with_their_data(services_wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_")
    assert services_wheel.name == f"framebus_services-{framebus.__version__}-cp311-abi3-{platform}.whl"
    names = names_in(services_wheel)
    dist_info = f"framebus_services-{framebus.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"services", dist_info}
    assert f"{dist_info}/licenses/LICENSE" in names
    of_the_build = ("MANIFEST.in", "LICENSE", "pyproject.toml", "setup.py")
    wanted = {
        file
        for file in source_files()
        if file.startswith("services/")
        and not file.endswith((".c", ".h"))
        and file not in {f"services/{name}" for name in of_the_build}
    }
    compiled = "services/stitcher/rendering/_warp_c.abi3.so"
    assert {name for name in names if name.startswith("services/")} == {*wanted, compiled}
    assert {"services/streamer/page/index.html", "services/simulator/footage/pedestrians.mp4"} <= wanted
    assert not any(name.endswith((".onnx", ".ort")) for name in names)  # models are data of a deployment


@pytest.mark.long
def test_without_a_compiler_the_services_are_pure_python(pure_services_wheel: Path) -> None:
    assert pure_services_wheel.name == f"framebus_services-{framebus.__version__}-py3-none-any.whl"
    assert tags_in(pure_services_wheel) == ["py3-none-any"]
    assert not [name for name in names_in(pure_services_wheel) if name.endswith(".so")]


@pytest.mark.long
def test_each_service_has_an_entry_point_a_command_and_an_extra(services_wheel: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(metadata_file(services_wheel, "entry_points.txt").decode())
    assert dict(parser["framebus.services"]) == {name: f"services.{name}.entry:SERVICE" for name in SERVICES}
    assert dict(parser["console_scripts"]) == {
        f"framebus-{name}": f"services.{name}.entry:SERVICE.main" for name in SERVICES
    }
    metadata = metadata_of(services_wheel)
    assert sorted(metadata.get_all("Provides-Extra", [])) == sorted((*SERVICES, "remote"))
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    (library,) = (one for one in requirements if one.name == "framebus")
    assert library.specifier.contains(framebus.__version__)
    assert library.marker is None


@pytest.mark.parametrize("which", ["wheel", "services_wheel"])
def test_the_metadata_claims_the_tested_versions(which: str, request: pytest.FixtureRequest) -> None:
    metadata = metadata_of(request.getfixturevalue(which))
    assert metadata["Version"] == framebus.__version__
    assert metadata["Requires-Python"] == f">={VERSIONS[0]}"
    classifiers = metadata.get_all("Classifier", [])
    claimed = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", one) for one in classifiers]
    assert tuple(match[1] for match in claimed if match) == VERSIONS
    assert "Operating System :: POSIX :: Linux" in classifiers


def test_the_description_shows_the_programs_and_holds_no_relative_link(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = description_in(metadata)
    assert all(program in description for program in readme_programs())
    assert [link for link in links_in(description) if not is_absolute(link)] == []
    assert all(is_absolute(entry.partition(", ")[2]) for entry in metadata.get_all("Project-URL", []))


def test_with_a_repository_address_every_link_is_absolute_and_names_a_file(unpacked: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(unpacked, tree, ignore=shutil.ignore_patterns("build", "tests", "services"))
    project = (tree / "pyproject.toml").read_text()
    addressed = re.sub(r'^repository = ".*"$', f'repository = "{ADDRESS}/"', project, flags=re.MULTILINE)
    assert ADDRESS in addressed
    (tree / "pyproject.toml").write_text(addressed)
    program = "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", program, str(tmp_path)]
    subprocess.run(command, cwd=tree, env=quiet_environment(), capture_output=True, timeout=60, check=True)
    (file,) = tmp_path.glob("*.dist-info/METADATA")
    metadata = email.message_from_bytes(file.read_bytes())
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL", []))
    assert urls.pop("Repository") == ADDRESS
    links = [*links_in(description_in(metadata)), *urls.values()]
    assert f"{ADDRESS}/raw/v{framebus.__version__}/docs/page.png" in links
    for link in links:
        assert is_absolute(link)
        if link.startswith(ADDRESS):
            path = re.sub(rf"^{ADDRESS}/(?:blob|raw)/v{framebus.__version__}/([^#]*).*", r"\1", link)
            assert (ROOT / path).exists(), link


def test_the_first_screen_has_two_short_programs() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    ends = [number for number, line in enumerate(lines, 1) if line == "```"]
    assert ends[2] <= 50, "the install command and both programs"
    assert all(program.count("\n") <= 14 for program in readme_programs())


@pytest.fixture(scope="module")
def bare_site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that holds the installed wheel and its dependencies without extras, and nothing else."""
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(wheel)]
    subprocess.run(command, env=quiet_environment(), timeout=60, check=True)
    for text in metadata_of(wheel).get_all("Requires-Dist", []):
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            distribution = importlib.metadata.distribution(requirement.name)
            for name in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
                (site / name).symlink_to(Path(str(distribution.locate_file(name))))
    return site


def write_programs(folder: Path) -> None:
    """Save the README's programs under the names that it gives them."""
    publisher, subscriber = readme_programs()
    (folder / "publish.py").write_text(publisher)
    (folder / "subscribe.py").write_text(subscriber)


@contextlib.contextmanager
def started(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process, and kill it at the end if it still runs."""
    pipe = subprocess.PIPE
    environment = {**environment, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupt(process: subprocess.Popen[str]) -> str:
    """Send what Ctrl-C sends, check for a clean exit, and return the rest of the output."""
    process.send_signal(signal.SIGINT)
    return ended(process)


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for the process, check for a clean exit, and return the rest of the output."""
    output, errors = process.communicate(timeout=30)
    assert errors == ""
    assert process.returncode == 0
    return output


def check_lines(lines: list[str]) -> None:
    """Check that the sequences rise, and that each picture belongs to its metadata."""
    newest = None
    for line in lines:
        match = LINE.fullmatch(line)
        assert match is not None, line
        sequence, number, bar, skipped = map(int, match.groups())
        assert number == sequence - 1
        assert bar == number * 8 % 1280
        if newest is not None:
            assert sequence == newest + skipped + 1
        newest = sequence


def run_publisher_first(python: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start the publisher first and interrupt it; the subscriber reports that it is gone and exits."""
    assert files_of(STREAM) == [], "a stream of this name is there already"
    with started([*python, "publish.py"], folder, environment) as publisher:
        while not files_of(STREAM) and publisher.poll() is None:
            time.sleep(0.02)
        with started([*python, "subscribe.py"], folder, environment) as subscriber:
            assert subscriber.stdout is not None
            lines = [subscriber.stdout.readline() for _ in range(10)]
            assert interrupt(publisher) == ""
            *more, last = ended(subscriber).splitlines(keepends=True)
    check_lines(lines + more)
    assert last.startswith(f"the publisher of '{STREAM}'")
    assert files_of(STREAM) == []


def run_subscriber_first(python: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start the subscriber first; interrupt it, then the publisher."""
    assert files_of(STREAM) == [], "a stream of this name is there already"
    with started([*python, "subscribe.py"], folder, environment) as subscriber:
        time.sleep(0.5)
        with started([*python, "publish.py"], folder, environment) as publisher:
            assert subscriber.stdout is not None
            lines = [subscriber.stdout.readline() for _ in range(10)]
            more = interrupt(subscriber).splitlines(keepends=True)
            assert interrupt(publisher) == ""
    check_lines(lines + more)
    assert files_of(STREAM) == []


def has_compiled_steps(python: list[str], folder: Path, environment: dict[str, str]) -> bool:
    """Return whether ``import framebus`` loads the compiled steps.

    LD_BIND_NOW makes the loader resolve all functions of the module at once, so that a missing one fails here.
    """
    program = "import sys, framebus; print('framebus.ring._ring_c' in sys.modules)"
    environment = {**environment, "LD_BIND_NOW": "1"}
    command = [*python, "-c", program]
    return subprocess.check_output(command, cwd=folder, env=environment, text=True, timeout=60) == "True\n"


@pytest.mark.parametrize("run", [run_publisher_first, run_subscriber_first])
def test_the_readmes_programs_run_with_the_bare_wheel(run: Run, bare_site: Path, tmp_path: Path) -> None:
    write_programs(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(bare_site), "FRAMEBUS_BACKEND": "auto"}
    python = [sys.executable, "-S"]  # without the packages of this environment
    assert has_compiled_steps(python, tmp_path, environment)
    run(python, tmp_path, environment)


def find_python(version: str) -> str:
    """Return an interpreter of that version, from pyenv or from the PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [*map(str, pyenv.glob(f"versions/{version}.*/bin/python")), f"python{version}"]
    program = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        with contextlib.suppress(OSError):
            found = subprocess.run([candidate, "-c", program], capture_output=True, text=True, timeout=60, check=False)
            if found.stdout == f"{version}\n":
                return candidate
    return lacks(f"no Python {version} with venv here: install it with 'pyenv install {version}'")


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", VERSIONS)
def test_each_wheel_runs_on_each_version(version: str, wheel: Path, pure_wheel: Path, tmp_path: Path) -> None:
    interpreter = find_python(version)
    write_programs(tmp_path)
    subprocess.run([interpreter, "-m", "venv", str(tmp_path / "venv")], env=quiet_environment(), check=True)
    python = [str(tmp_path / "venv/bin/python")]
    pip = [*python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    compiled_steps, pure_steps = dict(os.environ), {**os.environ, "FRAMEBUS_BACKEND": "python"}

    # If both wheels are offered, pip chooses the compiled one.
    both = tmp_path / "both"
    both.mkdir()
    for one in (wheel, pure_wheel):
        shutil.copy2(one, both)
    requirement = f"framebus=={framebus.__version__}"
    subprocess.run([*pip, "--find-links", str(both), requirement], env=quiet_environment(), timeout=400, check=True)
    assert has_compiled_steps(python, tmp_path, compiled_steps)
    run_publisher_first(python, tmp_path, compiled_steps)
    assert not has_compiled_steps(python, tmp_path, pure_steps)
    run_subscriber_first(python, tmp_path, pure_steps)

    again = [*pip, "--force-reinstall", "--no-deps", str(pure_wheel)]
    subprocess.run(again, env=quiet_environment(), timeout=100, check=True)
    assert not has_compiled_steps(python, tmp_path, compiled_steps)
    run_publisher_first(python, tmp_path, compiled_steps)
    run_subscriber_first(python, tmp_path, compiled_steps)


@pytest.fixture(scope="module")
def fresh_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a fresh virtual environment, into which only the wheel was installed."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], env=quiet_environment(), check=True)
    python = str(folder / "venv/bin/python")
    install(python, str(wheel))
    return python


@pytest.fixture
def fresh_desk(fresh_python: str, tmp_path: Path) -> Iterator[Desk]:
    """A desk in a folder with the examples and what they read, whose Python is that of the fresh environment."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for folder in ("services/simulator/footage", "models/default"):
        (tmp_path / folder).parent.mkdir(parents=True)
        (tmp_path / folder).symlink_to(ROOT / folder)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    desk = Desk(f"test-{secrets.token_hex(6)}", python=[fresh_python], environment=environment, folder=tmp_path)
    yield desk
    desk.close()


def install(python: str, *requirements: str) -> None:
    """Install packages into an environment, in the versions that this checkout pins."""
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    command = [*pip, "--constraint", str(ROOT / "constraints.txt"), *requirements]
    subprocess.run(command, env=quiet_environment(), timeout=400, check=True)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_examples_run_with_only_the_wheel(fresh_desk: Desk) -> None:
    found = subprocess.check_output(
        [*fresh_desk.python, "-c", "import framebus; print(framebus.__file__)"],
        cwd=fresh_desk.folder,
        env=fresh_desk.environment,
        text=True,
        timeout=60,
    )
    assert Path(found).is_relative_to(Path(fresh_desk.python[0]).parent.parent)
    for run in runs.WITH_FRAMEBUS_ALONE:
        run(fresh_desk)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_tutorial_works_with_the_wheel_and_its_extra(wheel: Path, fresh_desk: Desk) -> None:
    install(fresh_desk.python[0], f"{wheel}[snapshot]")
    tutorial.run(fresh_desk)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_pieces_and_examples_run_with_the_wheel_and_the_libraries_they_name(
    wheel: Path, fresh_desk: Desk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    install(fresh_desk.python[0], f"{wheel}[snapshot]", "av", "ipython", "onnxruntime", "pytest", "trio", "uvloop")
    runs.opencv(fresh_desk)
    runs.onnxruntime(fresh_desk)
    publish, _ = terminal_commands(runs.page("publish_subscribe"))
    publisher = fresh_desk.open(publish, "camera")
    publisher.line()
    for piece in pieces.PROGRAMS:
        if piece.heading not in pieces.WITH_TORCH:
            pieces.check_piece(piece, fresh_desk, tmp_path_factory.mktemp("piece"))
    pieces.check_notebook(fresh_desk, tmp_path_factory.mktemp("notebook"))
    pieces.check_fixture(fresh_desk, tmp_path_factory.mktemp("fixture"))
    publisher.interrupt()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_public_symbol_has_a_known_type(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], env=quiet_environment(), check=True)
    python = str(tmp_path / "venv/bin/python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, str(wheel), PYRIGHT], env=quiet_environment(), timeout=400, check=True)
    command = [str(tmp_path / "venv/bin/basedpyright"), "--outputjson", "--verifytypes", "framebus", "--ignoreexternal"]
    environment = {**os.environ, "PATH": f"{tmp_path / 'venv/bin'}:{os.environ['PATH']}"}  # whose packages it looks at
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    report = json.loads(found.stdout)["typeCompleteness"]
    unknown = [symbol["name"] for symbol in report["symbols"] if symbol["isExported"] and not symbol["isTypeKnown"]]
    assert unknown == []
    assert report["exportedSymbolCounts"]["withKnownType"] > 500


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_service_runs_from_the_wheels(wheel: Path, services_wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], env=quiet_environment(), check=True)
    python, command = str(tmp_path / "venv/bin/python"), str(tmp_path / "venv/bin/framebus-detector")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    requirements = ["--constraint", str(ROOT / "constraints.txt"), str(wheel), f"{services_wheel}[detector]"]
    subprocess.run([*pip, *requirements], env=quiet_environment(), timeout=400, check=True)

    config = tmp_path / "framebus.yaml"
    shutil.copy(ROOT / "config/framebus.yaml", config)
    # The wheel holds no model: it is data, and a sentence asks for it.
    done = subprocess.run(
        [command, "--check", "--config", str(config)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("detector: no model is configured")
    config.write_text(config.read_text().replace("detector:\n", f"detector:\n  model: {ROOT / 'models/default'}\n"))
    check = ["--check", "--config", str(config)]
    for start in ([command], [python, "-m", "services.detector"], [python, "-m", "services", "detector"]):
        done = subprocess.run([*start, *check], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # The supervisor checks the sections of services whose dependencies are not installed.
    config.write_text("streamer:\n  port: x\n")
    supervisor = [str(tmp_path / "venv/bin/framebus-supervisor"), *check]
    done = subprocess.run(supervisor, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{config}:2: streamer.port: ")

    told = subprocess.run(
        [command, "check", str(ROOT / "models/default")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "format    nanodet-decoded\n" in told.stdout, told.stderr
