"""The sizes of images, read from archives as the engine saves them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from bench.image_sizes import Layer, compressed_bytes, layers_of

LAYERS = {"sha256:a": b"a" * 5000, "sha256:b": bytes(range(256)) * 8}


@pytest.fixture
def saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a fake ``docker`` first on the path. It saves the layers a, b and, like older engines, a link to a."""
    archive = tmp_path / "saved.tar"
    contents = {"1/layer.tar": LAYERS["sha256:a"], "2/layer.tar": LAYERS["sha256:b"]}
    contents["config.json"] = json.dumps({"rootfs": {"diff_ids": ["sha256:a", "sha256:b", "sha256:a2"]}}).encode()
    layers = ["1/layer.tar", "2/layer.tar", "3/layer.tar"]
    contents["manifest.json"] = json.dumps([{"Config": "config.json", "Layers": layers}]).encode()
    with tarfile.open(archive, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("3/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../1/layer.tar"
        tar.addfile(link)
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1 $2" = "save --output" ] && cp {archive} "$3"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return archive


def test_layers_are_listed_from_the_bottom_with_both_sizes(saves: Path) -> None:
    assert saves.exists()
    first, second, link = layers_of("image", {})
    assert [layer.digest for layer in (first, second, link)] == ["sha256:a", "sha256:b", "sha256:a2"]
    assert (first.unpacked_bytes, second.unpacked_bytes) == (5000, 2048)
    assert first.compressed_bytes < 100
    assert link[1:] == first[1:], "a link is followed"


def test_a_known_layer_is_not_measured_again(saves: Path) -> None:
    assert saves.exists()
    known: dict[str, Layer] = {}
    layers_of("image", known)
    measured = dict(known)
    layers_of("image", known)
    assert all(known[digest] is layer for digest, layer in measured.items())


def test_the_compressed_size_is_that_of_gzip() -> None:
    content = LAYERS["sha256:b"] * 3000
    assert compressed_bytes(io.BytesIO(content)) == len(gzip.compress(content, 6, mtime=0))
