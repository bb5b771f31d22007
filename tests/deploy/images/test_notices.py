"""The third-party notice of an image."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.images.notices import notice


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    (tmp_path / "lib/python3.11/site-packages").mkdir(parents=True)
    return tmp_path


def install(environment: Path, name: str, metadata: str = "", files: tuple[str, ...] = ()) -> None:
    site = environment / "lib/python3.11/site-packages"
    info = site / f"{name}-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 2.0\n{metadata}")
    for file in files:
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: BSD-3-Clause\n", "BSD-3-Clause"),
        ("Classifier: License :: OSI Approved :: MIT License\nLicense: see file\n", "MIT License"),
        ("License: Apache 2.0\n", "Apache 2.0"),
        ("License: Copyright holders\n        and a whole text\n", "Copyright holders"),
        ("", "see its files"),
    ],
)
def test_a_licence_is_found_in_each_form_of_metadata(environment: Path, metadata: str, licence: str) -> None:
    install(environment, "demo", metadata)
    assert f"demo 2.0: {licence}\n" in notice(environment)


def test_the_notice_names_the_licence_texts_with_their_places(environment: Path) -> None:
    text = "demo-2.0.dist-info/licenses/LICENSE.txt"
    install(environment, "demo", files=(text, "demo/licence_plate.py", "demo/module.py"))
    said = notice(environment)
    assert f"  {environment}/lib/python3.11/site-packages/{text}\n" in said
    assert "licence_plate" not in said
    assert "module.py" not in said


def test_a_library_under_the_gpl_is_explained(environment: Path) -> None:
    install(environment, "decoder", files=("decoder.libs/libavcodec-1f2e.so.62.1", "decoder.libs/libx264-d6.so.165"))
    said = notice(environment)
    assert "carries decoder.libs/libx264-d6.so.165: x264, GPL-2.0-or-later" in said
    assert "under the GPL, version 2 or later" in said


def test_without_a_gpl_library_the_notice_does_not_mention_the_gpl(environment: Path) -> None:
    install(environment, "images", files=("images.libs/libavcodec-1f2e.so.62.1",))
    said = notice(environment)
    assert "FFmpeg, LGPL" in said
    assert "have the combined work under the GPL" not in said


def test_framebus_itself_is_not_a_third_party(environment: Path) -> None:
    install(environment, "framebus")
    install(environment, "framebus-services")
    assert "framebus" not in notice(environment).replace("framebus itself", "")


@pytest.mark.slow
def test_every_package_of_this_environment_is_described() -> None:
    said = notice(Path(sys.prefix))
    for name in ("numpy", "opencv-python-headless", "av", "pyzmq"):
        assert f"\n{name} " in said
