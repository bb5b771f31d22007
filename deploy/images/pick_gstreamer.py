"""Copy the files of Debian's GStreamer that the simulator uses, with their libraries and the packages' notices.

``python pick_gstreamer.py FOLDER BASE``: the packages contain some 300 plug-ins, of which the simulator uses ten. BASE
lists the packages of the base image, whose files are not copied. For each other package that a file belongs to, also
copy the copyright notice, and the record to where scanners read it (/var/lib/dpkg/status.d).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

PLUGINS = (
    # With the elements that the pipelines of services/simulator/rtsp.py name.
    *("app", "coreelements", "mpegtsdemux", "rtp", "videoparsersbad"),
    # With the elements that the RTSP server adds.
    *("rtpmanager", "rtsp", "tcp", "typefindfunctions", "udp"),
)
TYPELIBS = (
    *("GLib", "GObject", "GModule", "Gio"),
    *("Gst", "GstApp", "GstBase", "GstNet", "GstRtp", "GstRtsp", "GstRtspServer", "GstSdp"),
)
BINDINGS = Path("/usr/lib/python3/dist-packages/gi")


def _libraries(path: Path) -> set[Path]:
    """Return the shared libraries that the dynamic linker loads with a file."""
    done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
    return {Path(found) for found in re.findall(r"=> (/\S+)", done.stdout)}


def _package(path: Path) -> str:
    """Return the package that owns a file, or an empty string."""
    # Debian 12 lists some libraries below /lib, which is a link to /usr/lib.
    for name in (str(path), str(path).removeprefix("/usr")):
        done = subprocess.run(["dpkg", "--search", name], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.split(": ")[0].split(",")[0]
    return ""


def chosen() -> list[Path]:
    """Return the files to copy."""
    libraries = next(Path("/usr/lib").glob("*-linux-gnu/gstreamer-1.0")).parent
    files = [libraries / "gstreamer-1.0" / f"libgst{name}.so" for name in PLUGINS]
    files += [path for name in TYPELIBS for path in (libraries / "girepository-1.0").glob(f"{name}-*.typelib")]
    files += [path for path in BINDINGS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    # Libraries that are loaded by a name in a typelib.
    files += list(libraries.glob("libgstrtspserver-1.0.so.0"))
    files += {library for path in list(files) if ".so" in path.name for library in _libraries(path)}
    return files


def copy(path: Path, folder: Path) -> None:
    """Copy a file, and the link that refers to it, to the same place below the folder."""
    place = path.parent.resolve() / path.name
    for one in {place, place.resolve()}:
        target = folder / one.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(one, target, follow_symlinks=False)


def main() -> None:
    """Copy all files into the folder that the command line names."""
    folder = Path(sys.argv[1])
    base = set(Path(sys.argv[2]).read_text().split())
    packages = set()
    for path in chosen():
        package = _package((path.parent.resolve() / path.name).resolve())
        if package.split(":")[0] not in base:
            copy(path, folder)
            packages.add(package)
    for package in sorted(packages - {""}):
        name = package.split(":")[0]
        copy(Path("/usr/share/doc") / name / "copyright", folder)
        record = folder / "var/lib/dpkg/status.d" / name
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(subprocess.check_output(["dpkg", "--status", package], text=True))


if __name__ == "__main__":
    main()
