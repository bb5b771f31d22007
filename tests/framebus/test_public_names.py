"""What ``import framebus`` promises."""

from __future__ import annotations

import builtins
import subprocess
import sys

import pytest

import framebus
from framebus import errors


def test_the_exported_names() -> None:
    assert framebus.__all__ == sorted(framebus.__all__)
    assert set(framebus.__all__) == {
        "AlreadyInUse", "Closed", "FormatMismatch", "Frame", "FrameFormat", "FrameHeader", "FrameReleased",
        "FrameTooLarge", "FramebusError", "InvalidArgument", "InvalidMetadata", "InvalidName", "LayoutMismatch",
        "Loan", "LoanOutstanding", "NoFreeSlot", "NotEnoughSharedMemory", "PermissionDenied", "Publisher",
        "PublisherStatistics", "ReceiveTimeout", "ResourceExhausted", "StreamExists", "StreamGone", "StreamInfo",
        "StreamNotFound", "Subscriber", "SubscriberInfo", "SubscriberLimitReached", "SubscriberRecord",
        "SubscriberStatistics", "TooManyLeases", "UnsupportedEnvironment", "WrongThread", "backend", "companion_path",
        "companion_paths", "remove_leftovers", "streams",
    }  # fmt: skip
    assert all(hasattr(framebus, name) for name in framebus.__all__)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        ("StreamNotFound", "FileNotFoundError"),
        ("StreamExists", "FileExistsError"),
        ("LayoutMismatch", "ValueError"),
        ("ReceiveTimeout", "TimeoutError"),
        ("NotEnoughSharedMemory", "OSError"),
        ("PermissionDenied", "PermissionError"),
        ("InvalidName", "ValueError"),
        ("FrameTooLarge", "ValueError"),
        ("StreamGone", "ConnectionError"),
        ("InvalidArgument", "ValueError"),
        ("InvalidMetadata", "ValueError"),
        ("FormatMismatch", "ValueError"),
        ("NoFreeSlot", "RuntimeError"),
        ("SubscriberLimitReached", "RuntimeError"),
        ("ResourceExhausted", "OSError"),
    ],
)
def test_every_error_is_also_the_builtin_that_fits(error: str, builtin: str) -> None:
    kind = getattr(framebus, error)
    assert issubclass(kind, framebus.FramebusError)
    assert issubclass(kind, getattr(builtins, builtin))


def test_every_error_is_exported_and_prints_its_sentence_alone() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {kind.__name__ for kind in kinds} <= set(framebus.__all__)
    assert str(framebus.NotEnoughSharedMemory(28, "a sentence")) == "a sentence"
    assert framebus.NotEnoughSharedMemory(28, "a sentence").errno == 28


def test_the_library_needs_only_its_three_dependencies() -> None:
    code = (
        "import sys; before = set(sys.modules); import framebus; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in answer.stdout.split() if not name.startswith(("_", "sitecustomize"))}
    assert loaded <= {"framebus", "numpy", "posix_ipc", "msgpack", "cython_runtime"}
