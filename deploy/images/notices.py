"""Write the third-party notice of an image: the packages of its environment, their licences, and where the texts are.

``python notices.py ENVIRONMENT`` writes ``ENVIRONMENT/THIRD-PARTY-NOTICES.txt``.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

COPYLEFT = {
    "libx264": "x264, GPL-2.0-or-later",
    "libx265": "x265, GPL-2.0-or-later",
    "libavcodec": "FFmpeg, LGPL; GPL where it is linked with x264 or x265",
    "libgmp": "GMP, LGPL-3.0-or-later or GPL-2.0-or-later",
    "libnettle": "Nettle, LGPL-3.0-or-later or GPL-2.0-or-later",
    "libgnutls": "GnuTLS, LGPL-2.1-or-later",
    "libmp3lame": "LAME, LGPL-2.0-or-later",
    "libasound": "ALSA, LGPL-2.1-or-later",
    "libzmq": "ZeroMQ, MPL-2.0",
}
"""Libraries in wheels whose licence has conditions for redistribution, by the first part of the file name."""
OWN = {"framebus", "framebus-services"}

HEAD = """\
Third-party notices of this image

framebus itself is under Apache-2.0. This image holds the Python distributions below, each under its own licence. The
packages of the base system carry theirs in /usr/share/doc/PACKAGE/copyright.
"""
GPL = """\
x264 and x265 are under the GPL, version 2 or later, and the FFmpeg beside them loads them. framebus decodes with that
FFmpeg. An organisation that passes this image on passes those libraries on too: it must provide or offer their source,
and must allow the receiver to use the combined work under the GPL (version 3, with which Apache-2.0 is compatible). An
organisation that only runs the image has no such duty.
"""


def _licence(distribution: Distribution) -> str:
    def stated(key: str) -> list[str]:
        return distribution.metadata.get_all(key) or []

    classified = [value.split(" :: ")[-1] for value in stated("Classifier") if value.startswith("License ::")]
    # In older metadata, License may contain the whole text.
    first_lines = [value.strip().partition("\n")[0] for value in stated("License")]
    return (stated("License-Expression") or [" and ".join(classified)])[0] or "".join(first_lines) or "see its files"


def _texts(distribution: Distribution) -> list[Path]:
    names = ("licen", "copying", "notice", "authors", "third")
    return sorted(
        Path(str(distribution.locate_file(path)))
        for path in distribution.files or []
        if path.name.lower().startswith(names) and path.suffix in ("", ".txt", ".md", ".rst", ".BSD", ".APACHE")
    )


def notice(environment: Path) -> str:
    """Return the notice of the distributions in a virtual environment."""
    folders = [str(path) for path in environment.glob("lib/python3.*/site-packages")]
    found = {one.metadata["Name"]: one for one in distributions(path=folders) if one.metadata["Name"] not in OWN}
    parts, is_gpl = [HEAD], False
    for name in sorted(found, key=str.lower):
        lines = [f"{name} {found[name].version}: {_licence(found[name])}"]
        for path in sorted(found[name].files or []):
            library = path.name.split("-")[0].split(".")[0]
            if ".so" in path.suffixes and library in COPYLEFT:
                lines.append(f"  carries {path}: {COPYLEFT[library]}")
                is_gpl |= library in ("libx264", "libx265")
        lines += [f"  {path}" for path in _texts(found[name]) if path.exists()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, GPL] if is_gpl else parts)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "THIRD-PARTY-NOTICES.txt").write_text(notice(folder))
