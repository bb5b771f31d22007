"""Stacked layers: which files are visible, and which are superseded or deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.image_usage.errors import CannotMeasure
from bench.image_usage.layers import Content, State, base_length, merge, scan
from tests.bench.image_usage.made import Inodes


def states(*layers: Content) -> dict[tuple[int, str], State]:
    return {(one.layer, one.path): one.state for one in merge(layers).files}


def test_a_later_file_supersedes_an_earlier_one_of_its_path() -> None:
    made = Inodes()
    found = states(made.content({"/a": 10, "/b": 20}), made.content({"/a": 11}))
    assert found == {(0, "/a"): State.SUPERSEDED, (0, "/b"): State.VISIBLE, (1, "/a"): State.VISIBLE}


def test_a_symbolic_link_supersedes_a_file_and_a_file_a_link() -> None:
    made = Inodes()
    layers = [made.content({"/a": 1}), made.content({}, links={"/a": "/b"}), made.content({"/a": 2})]
    assert states(*layers[:2]) == {(0, "/a"): State.SUPERSEDED}
    assert merge(layers[:2]).links == {"/a": "/b"}
    assert merge(layers).links == {}
    assert states(*layers) == {(0, "/a"): State.SUPERSEDED, (2, "/a"): State.VISIBLE}


def test_a_whiteout_deletes_a_file_or_all_below_a_folder() -> None:
    made = Inodes()
    lower = made.content({"/d/x": 1, "/d/e/y": 2, "/d2/z": 3, "/f": 4})
    assert states(lower, made.content({}, whiteouts=("/d", "/f"))) == {
        (0, "/d/x"): State.DELETED,
        (0, "/d/e/y"): State.DELETED,
        (0, "/d2/z"): State.VISIBLE,
        (0, "/f"): State.DELETED,
    }


def test_an_opaque_folder_hides_what_lies_below_it() -> None:
    made = Inodes()
    lower = made.content({"/d/x": 1, "/d/y": 2, "/e": 3})
    upper = made.content({"/d/y": 4}, opaque=("/d",), folders=("/d",))
    assert states(lower, upper) == {
        (0, "/d/x"): State.DELETED,
        (0, "/d/y"): State.SUPERSEDED,
        (0, "/e"): State.VISIBLE,
        (1, "/d/y"): State.VISIBLE,
    }


def test_a_deleted_file_can_be_created_again_by_a_later_layer() -> None:
    made = Inodes()
    layers = [made.content({"/a": 1}), made.content({}, whiteouts=("/a",)), made.content({"/a": 2})]
    assert states(*layers) == {(0, "/a"): State.DELETED, (2, "/a"): State.VISIBLE}


def test_a_folder_supersedes_a_file() -> None:
    made = Inodes()
    found = states(made.content({"/a": 1}), made.content({"/a/b": 2}, folders=("/a",)))
    assert found == {(0, "/a"): State.SUPERSEDED, (1, "/a/b"): State.VISIBLE}


def test_hard_links_are_one_file_that_is_visible_while_one_name_is() -> None:
    made = Inodes()
    lower = made.content({"/a": 5, "/a=/b": 0})
    (file,) = merge([lower]).files
    assert (file.paths, file.size_bytes) == (("/a", "/b"), 5)
    (file,) = merge([lower, made.content({}, whiteouts=("/a",))]).files
    assert (file.path, file.state) == ("/b", State.VISIBLE)
    (file,) = merge([lower, made.content({}, whiteouts=("/a", "/b"))]).files
    assert file.state is State.DELETED


def test_paths_are_resolved_through_links() -> None:
    links = {"/lib": "usr/lib", "/usr/lib/x.so": "x.so.1", "/up": "/usr/../usr/lib", "/loop": "loop"}
    view = merge([Inodes().content({"/usr/lib/x.so.1": 1}, links=links)])
    assert view.resolve("/lib/x.so") == "/usr/lib/x.so.1"
    assert view.resolve("/up/x.so.1") == "/usr/lib/x.so.1"
    assert view.resolve("/absent/../lib/y") == "/usr/lib/y"
    assert view.resolve("/loop").startswith("/loop")


def test_a_folder_is_read_as_a_layer(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(b"12345")
    os.link(tmp_path / "d/a", tmp_path / "b")
    (tmp_path / "c").symlink_to("d/a")
    content = scan(tmp_path)
    assert set(content.files) == {"/d/a", "/b"}
    assert content.files["/d/a"] == content.files["/b"]
    assert list(content.sizes_bytes.values()) == [5]
    assert dict(content.links) == {"/c": "d/a"}
    assert set(content.folders) == {"/d"}
    assert not content.whiteouts
    assert not content.opaque


@pytest.mark.root
def test_whiteouts_and_opaque_folders_are_read(tmp_path: Path) -> None:
    os.mknod(tmp_path / "gone", 0o20000, 0)
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", "trusted.overlay.opaque", b"y")
    content = scan(tmp_path)
    assert (set(content.whiteouts), set(content.opaque)) == ({"/gone"}, {"/d"})
    assert not content.files


def test_a_missing_layer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CannotMeasure, match="cannot be read"):
        scan(tmp_path / "absent")


def test_the_base_is_the_longest_image_whose_layers_are_the_first_ones() -> None:
    others = {
        "a": ["1"],
        "ab": ["1", "2"],
        "b": ["2"],
        "itself": ["1", "2", "3"],
        "empty": [],
        "more": ["1", "2", "3", "4"],
    }
    assert base_length(["1", "2", "3"], others) == ("ab", 2)
    assert base_length(["7", "8"], others) == ("", 0)
