"""Copies an image, with layers that no other image has, so that the use of pages by other containers does not count.

An engine stores a layer once for all images that have it, and the page cache holds its files once for all containers.
The copy's layers have the same content, but other digests: each archive has a further block of zeros, which tar ignores
after the two blocks that end an archive. The engine therefore unpacks them into separate folders.

Source: Docker Image Specification v1.2, "Combined Image JSON + Filesystem Changeset Format"; POSIX.1-2017, pax,
"ustar Interchange Format".
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from bench.image_usage.engine import docker
from bench.image_usage.errors import CannotMeasure

BLOCK: Final = bytes(512)
CHUNK_BYTES: Final = 1 << 20
MANIFEST: Final = "manifest.json"


@contextmanager
def unshared(image: str) -> Iterator[str]:
    """Load a copy of an image into the engine under another name, and remove it at the end.

    Raises:
        CannotMeasure: The engine has no such image, or cannot load the copy.
    """
    name = f"image-usage-{secrets.token_hex(4)}:{image.partition(':')[0].rpartition('/')[2]}"
    with tempfile.TemporaryDirectory(prefix="image-usage-") as folder:
        saved, copied = Path(folder, "saved.tar"), Path(folder, "copied.tar")
        docker("save", "--output", str(saved), image, timeout_s=600)
        with tarfile.open(saved) as source, tarfile.open(copied, "w") as target:
            _copy(source, target, name)
        # Remove the first archive now, because the disk must also hold the second one and the loaded image.
        saved.unlink()
        docker("load", "--quiet", "--input", str(copied), timeout_s=600)
    try:
        yield name
    finally:
        subprocess.run(["docker", "rmi", "--force", name], capture_output=True, check=False)


def _copy(source: tarfile.TarFile, target: tarfile.TarFile, name: str) -> None:
    """Write an archive for ``docker load`` with the only image of another such archive."""
    (saved,) = json.load(_member(source, MANIFEST))
    configuration = json.load(_member(source, saved["Config"]))
    digests, layers = [], []
    for number, layer in enumerate(saved["Layers"]):
        digests.append(_copy_layer(source, target, layer, f"{number}.tar"))
        layers.append(f"{number}.tar")
    # The engine compares the layers with these digests.
    configuration["rootfs"]["diff_ids"] = digests
    _add(target, "config.json", configuration)
    _add(target, MANIFEST, [{"Config": "config.json", "RepoTags": [name], "Layers": layers}])


def _copy_layer(source: tarfile.TarFile, target: tarfile.TarFile, layer: str, name: str) -> str:
    """Copy a layer, append a block of zeros, and return the new digest."""
    content = tarfile.TarInfo(name)
    with tempfile.TemporaryFile() as longer:
        digest = hashlib.sha256()
        read = _member(source, layer)
        while chunk := read.read(CHUNK_BYTES):
            longer.write(chunk)
            digest.update(chunk)
        longer.write(BLOCK)
        digest.update(BLOCK)
        content.size = longer.tell()
        longer.seek(0)
        target.addfile(content, longer)
    return f"sha256:{digest.hexdigest()}"


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)  # follows links, because engines save equal layers once
    if found is None:
        raise CannotMeasure(f"the engine saved the image without {name}")
    return found


def _add(archive: tarfile.TarFile, name: str, content: Any) -> None:
    data = json.dumps(content).encode()
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
