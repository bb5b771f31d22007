"""What the kernel may answer to a lock: that another process holds it, or that something is wrong."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framebus.ring.frame_header import Description
from framebus.ring.layout import Geometry
from framebus.ring.publisher_ring import PublisherRing
from framebus.ring.subscriber_ring import SubscriberRing
from framebus.shm.segment import Segment
from tests.support import ROOT, lacks

pytestmark = pytest.mark.slow

DESCRIPTION = Description(2, 3, 1, "|u1", "gray").pack()
FAILING_FCNTL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

static int fail(const char *name, int fd, int command, va_list arguments)
{
    const char *wanted = getenv("LOCK_ERRNO");
    void *argument = va_arg(arguments, void *);
    if (command == F_OFD_SETLK && wanted && ((struct flock *)argument)->l_type != F_UNLCK) {
        errno = atoi(wanted);
        return -1;
    }
    return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    return fail("fcntl", fd, command, arguments);
}

int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    return fail("fcntl64", fd, command, arguments);
}
"""
ASK = """
import ctypes, sys
from tests.framebus.ring.test_refusals import DESCRIPTION, Geometry, PublisherRing, SubscriberRing
from framebus.ring import backend

libc = ctypes.CDLL(None)
publisher = PublisherRing(sys.argv[1], Geometry.for_frames(4, 6))
claim = publisher.writer.claim(DESCRIPTION)
publisher.writer.publish(claim, 1, 2)
for number in sys.argv[2:]:
    reader = SubscriberRing(sys.argv[1]).reader
    libc.setenv(b"LOCK_ERRNO", number.encode(), 1)
    for ask in (lambda: publisher.writer.claim(DESCRIPTION), reader.take, reader.warm_up):
        try:
            print(backend.name(), ask())
        except OSError as error:
            print(backend.name(), type(error).__name__, error.errno)
    libc.unsetenv(b"LOCK_ERRNO")
    assert reader.take() is not None
publisher.close(unlink=True)
"""


@pytest.fixture
def publisher(stream: str) -> Iterator[PublisherRing]:
    opened = PublisherRing(stream, Geometry.for_frames(4, 6))
    yield opened
    opened.close(unlink=True)


@contextlib.contextmanager
def descriptor(segment: Segment, number: int) -> Iterator[None]:
    """Let the segment have another descriptor for a while."""
    before, segment.fd = segment.fd, number
    try:
        yield
    finally:
        segment.fd = before


def claimed(publisher: PublisherRing) -> Any:
    claim = publisher.writer.claim(DESCRIPTION)
    assert claim is not None
    return claim


@pytest.mark.usefixtures("each_steps")
def test_a_claim_that_may_not_be_locked_for_writing_is_an_error(publisher: PublisherRing) -> None:
    fd = os.open(publisher.segment.path, os.O_RDONLY)
    with descriptor(publisher.segment, fd), pytest.raises(OSError) as raised:  # noqa: PT011  its errno is asked
        publisher.writer.claim(DESCRIPTION)
    os.close(fd)
    assert raised.value.errno == errno.EBADF
    assert publisher.writer.loans == 0
    claimed(publisher).abandon()


@pytest.mark.usefixtures("each_steps")
def test_a_lease_that_may_not_be_locked_for_reading_is_an_error(stream: str, publisher: PublisherRing) -> None:
    publisher.writer.publish(claimed(publisher), 1, 2)
    reader = SubscriberRing(stream).reader
    fd = os.open(publisher.segment.path, os.O_WRONLY)
    for ask in (reader.take, lambda: reader.spin(0), lambda: reader.sleep(0, 1), reader.warm_up):
        with descriptor(reader.segment, fd), pytest.raises(OSError) as raised:  # noqa: PT011  its errno is asked
            ask()
        assert raised.value.errno == errno.EBADF
    os.close(fd)
    assert (reader.overruns, reader.leases, reader.last) == (0, 0, -1)
    assert reader.take() is not None


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("end", ["abandon", "publish"])
def test_a_slot_that_cannot_be_unlocked_is_an_error(publisher: PublisherRing, end: str) -> None:
    claim = claimed(publisher)
    call: Callable[[], object] = claim.abandon if end == "abandon" else lambda: publisher.writer.publish(claim, 1, 2)
    with descriptor(publisher.segment, 1 << 20), pytest.raises(OSError) as raised:  # noqa: PT011  its errno is asked
        call()
    assert raised.value.errno == errno.EBADF


@pytest.mark.usefixtures("each_steps")
def test_a_failed_unlock_in_a_finalizer_is_reported(
    stream: str, publisher: PublisherRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.writer.publish(claimed(publisher), 1, 2)
    told: list[int] = []  # and not the exceptions, whose frames reference what ends
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value.errno))
    reader = SubscriberRing(stream).reader
    ends: list[tuple[Segment, Any]] = [(reader.segment, reader.take()), (publisher.segment, claimed(publisher))]
    while ends:
        segment, held = ends.pop()
        assert held is not None
        with descriptor(segment, 1 << 20):
            del held
            gc.collect()
    assert told == [errno.EBADF] * 2
    assert claimed(publisher).is_open


@pytest.mark.usefixtures("each_steps")
def test_in_a_forked_child_nothing_can_be_leased(stream: str, publisher: PublisherRing) -> None:
    publisher.writer.publish(claimed(publisher), 1, 2)
    reader = SubscriberRing(stream).reader
    with descriptor(reader.segment, -1), pytest.raises(OSError) as raised:  # noqa: PT011  its errno is asked
        reader.take()
    assert raised.value.errno == errno.EBADF
    with descriptor(publisher.segment, -1):
        assert publisher.writer.claim(DESCRIPTION) is None


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose fcntl(2) refuses locks with an errno of one's choice."""
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    try:
        subprocess.run(
            [*compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"],
            input=FAILING_FCNTL.encode(),
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        lacks("no C compiler: run 'make system-packages'")
    return library


@pytest.mark.parametrize("backend", ["c", "python"])
def test_only_a_held_lock_is_a_held_slot(request: pytest.FixtureRequest, stream: str, shim: Path, backend: str) -> None:
    if backend == "c":
        request.getfixturevalue("compiled_steps")
    preloaded = os.environ.get("LD_PRELOAD", "")  # a sanitizer's library must come first
    held, wrong = (errno.EAGAIN, errno.EACCES), (errno.ENOLCK, errno.EINVAL, errno.EIO)
    done = subprocess.run(
        [sys.executable, "-c", ASK, stream, *map(str, held + wrong)],
        env={**os.environ, "FRAMEBUS_BACKEND": backend, "LD_PRELOAD": f"{preloaded} {shim}", "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    told = [*["None"] * len(held), *(f"OSError {number}" for number in wrong)]
    assert done.stdout.splitlines() == [f"{backend} {one}" for one in told for _ in range(3)]
