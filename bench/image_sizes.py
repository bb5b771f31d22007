"""Prints what images take on disk and to pull: ``python -m bench.image_sizes IMAGE...``.

For each image: the bytes of its layers, unpacked and compressed as registries keep them (gzip, level 6), and those that
are new on a host with the base and the images named before. The time to pull follows from the new bytes and the given
rate; the registry's latency and the unpacking come on top.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

from rich.console import Console
from rich.table import Table

BASE = "python:3.11-slim-bookworm"
CHUNK_BYTES = 1 << 20


class Layer(NamedTuple):
    """A layer of an image."""

    digest: str
    """``sha256:…`` of its unpacked tar, by which engines identify a layer."""
    unpacked_bytes: int
    compressed_bytes: int


def compressed_bytes(content: IO[bytes]) -> int:
    """Return the length of a stream after compression by gzip."""
    # 31 selects gzip's header and the largest window, as registries use.
    squeeze = zlib.compressobj(level=6, wbits=31)
    total = sum(len(squeeze.compress(chunk)) for chunk in iter(lambda: content.read(CHUNK_BYTES), b""))
    return total + len(squeeze.flush())


def layers_of(image: str, known: dict[str, Layer]) -> list[Layer]:
    """Return an image's layers, from the bottom. Those in ``known`` are not compressed again; new ones are added to it.

    Raises:
        subprocess.CalledProcessError: The engine has no such image, or none answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "image.tar"
        subprocess.run(["docker", "save", "--output", str(saved), image], check=True, capture_output=True, text=True)
        with tarfile.open(saved) as archive:

            def read(name: str) -> IO[bytes]:
                member = archive.extractfile(name)
                assert member is not None, name
                return member

            (manifest,) = json.load(read("manifest.json"))
            digests = json.load(read(manifest["Config"]))["rootfs"]["diff_ids"]
            for digest, name in zip(digests, manifest["Layers"], strict=True):
                # Compressing is slow, and most layers occur in several images.
                if digest not in known:
                    target = _target(archive, name)
                    known[digest] = Layer(digest, archive.getmember(target).size, compressed_bytes(read(target)))
    return [known[digest] for digest in digests]


def _target(archive: tarfile.TarFile, name: str) -> str:
    """Return the member that holds a layer: an older engine saves a repeated layer as a link to the first."""
    member = archive.getmember(name)
    return os.path.normpath(Path(name).parent / member.linkname) if member.issym() else name


def report(images: Iterable[str], base: str, rate_mbit_s: float) -> Table:
    """Measure the images in order and return a table with a row for each."""
    known: dict[str, Layer] = {}
    of_base = set(layers_of(base, known))
    # A host is assumed to have the base already, and, after each row, that row's image.
    present = set(of_base)
    heads = ("image", "MB", "own MB", "own, compressed MB", "new on a host with those above, MB", "pull s")
    table = Table(*heads, title=f"own: without {base}; pull at {rate_mbit_s:g} Mbit/s")
    for image in images:
        layers = layers_of(image, known)
        own = [layer for layer in layers if layer not in of_base]
        new_bytes = sum(layer.compressed_bytes for layer in layers if layer not in present)
        present.update(layers)
        megabytes = (
            sum(layer.unpacked_bytes for layer in layers),
            sum(layer.unpacked_bytes for layer in own),
            sum(layer.compressed_bytes for layer in own),
            new_bytes,
        )
        table.add_row(image, *(f"{value / 1e6:.1f}" for value in megabytes), f"{new_bytes * 8 / rate_mbit_s / 1e6:.1f}")
    return table


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.image_sizes", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("image", nargs="+", help="an image that the engine has")
    parser.add_argument("--base", default=BASE, help=f"the image whose layers count as the base's; default {BASE}")
    parser.add_argument("--rate", type=float, default=100.0, metavar="MBIT_S", help="rate of the registry; default 100")
    arguments = parser.parse_args()
    try:
        Console().print(report(arguments.image, arguments.base, arguments.rate))
    except FileNotFoundError:
        print("docker is not installed: install an engine and its client", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(error.stderr.strip(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
