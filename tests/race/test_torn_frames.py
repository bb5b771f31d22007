"""A publisher flat out, subscribers that hold frames for random times: no frame is torn, none comes twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support import Program


@pytest.mark.parametrize(
    "subscribers",
    [
        [("newest", "futex", "0"), ("newest", "zmq", "4")],
        [("every", "futex", "0"), ("newest", "futex", "20"), ("every", "zmq", "1")],
    ],
)
def test_no_frame_is_torn(
    stream: str, start_program: Callable[..., Program], subscribers: list[tuple[str, str, str]]
) -> None:
    publisher = start_program("flat_out", stream, "60", "100", "8", "3")
    assert publisher.read() == "open"
    readers = [start_program("check_frames", stream, *arguments) for arguments in subscribers]
    assert [reader.read() for reader in readers] == ["open"] * len(readers)
    publisher.send()
    published, dropped = map(int, publisher.read().split())
    publisher.send()
    assert publisher.end() == 0
    assert dropped == 0
    for reader in readers:
        received, torn, backwards, skipped, last = map(int, reader.read().split())
        assert reader.end() == 0
        assert (torn, backwards) == (0, 0)
        assert received > 10
        assert received + skipped <= published
        assert last <= published
