"""Faults to put into the real code, one step moved or left out: what the race programs must find.

A fault replaces a piece of the source, as it is in ``framebus/ring/`` now: of a function in ``claims.py`` or
``leases.py``, or of ``_ring_c.c``, which is then compiled anew. Where that piece is no longer there, the fault cannot
be made, so none outlives the code that it is about. The names are those of the model's mutants
(``verification/mutants.py``).
"""

from __future__ import annotations

import importlib.util
import inspect
import shlex
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from framebus.ring import _ring_py as steps
from framebus.ring import backend, claims, leases, words
from framebus.shm.segment import Segment
from tests.support import ROOT


class Fault(NamedTuple):
    """A piece of a function, and what stands there instead."""

    owner: type
    function: str
    piece: str
    instead: str


class CompiledFault(NamedTuple):
    """A piece of ``_ring_c.c``, and what stands there instead."""

    piece: str
    instead: str


MEANWHILE_S: Final = 0.05


def meanwhile(segment: Segment, slot: int) -> None:
    """Wait until a publisher has begun to write the slot and let it go, alive or dead; not for long."""
    end_s = time.monotonic() + MEANWHILE_S
    values, seq = segment.words, words.SEQ_WORDS[slot]
    while values[seq] and time.monotonic() < end_s:
        time.sleep(0)
    while segment.is_locked(words.LOCK_READ[slot]) and time.monotonic() < end_s:
        time.sleep(0)


LOCK: Final = "not segment.try_lock(LOCK_READ[slot])"
CHECK: Final = "segment.words[SEQ_WORDS[slot]] != sequence"
FAILED: Final = "    self.overruns += 1\n"
VIEW: Final = "    return lease\n"
CLAIM: Final = "not segment.try_lock(LOCK_WRITE[slot])"
ZERO: Final = "words[seq] = 0"
BEFORE_LOCK: Final = "    self._sweep()\n"

FAULTS: Final = {
    "lease: without 'lock'": Fault(leases.Reader, "_lease", LOCK, "False"),
    "lease: without 'check'": Fault(leases.Reader, "_lease", f" or {CHECK}", ""),
    "lease: 'check' before 'lock'": Fault(
        leases.Reader, "_lease", f"{LOCK} or {CHECK}", f"{CHECK} or meanwhile(segment, slot) or {LOCK}"
    ),
    "lease: unlocked while the view lives": Fault(
        leases.Reader, "_lease", VIEW, f"    segment.unlock(UNLOCK[slot])\n{VIEW}"
    ),
    # What is not registered, and has another slot, does not unlock this one when it ends.
    "lease: not unlocked after a failed check": Fault(
        leases.Reader,
        "_lease",
        FAILED,
        f"    lease.slot = NO_SLOT\n        del self._leases[lease.reference]\n    {FAILED}",
    ),
    "claim: a slot that is loaned too": Fault(claims.Writer, "_claim_oldest", ", *self._claims.values()", ""),
    "publish: without 'lock'": Fault(claims.Writer, "_lock", CLAIM, "False"),
    "publish: without 'zero'": Fault(claims.Writer, "_lock", ZERO, "pass"),
    "publish: 'header' and 'seq' before 'first'": Fault(
        claims.Writer, "_lock", ZERO, "words[seq + EPOCH_WORD + 1] = words[seq] = self.next_sequence"
    ),
    "slow between look and lock": Fault(
        leases.Reader, "_lease", BEFORE_LOCK, f"{BEFORE_LOCK}    meanwhile(segment, slot)\n"
    ),
}
"""The last is none: a subscriber that takes its time makes what may happen meanwhile likely."""


C_SOURCE: Final = ROOT / "framebus/ring/_ring_c.c"
C_MEANWHILE: Final = """
#include <sched.h>

static int is_writing(int fd, unsigned slot)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = LOCK_SLOTS + slot, .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static int meanwhile(uint8_t *ring, int fd, unsigned slot)
{
    int64_t end_ns = now_ns() + MEANWHILE_NS;
    while (load64(slot_header(ring, slot)) && now_ns() < end_ns)
        sched_yield();
    while (is_writing(fd, slot) && now_ns() < end_ns)
        sched_yield();
    usleep(300); /* as slow as Python: other slots are the newest meanwhile */
    return 1;
}
""".replace("MEANWHILE_NS", str(int(MEANWHILE_S * 1e9)))
C_BEFORE_LEASE: Final = "\n/* A lease on the slot if"
C_LOCK: Final = "set_lock(fd, F_RDLCK, slot) == 0"
C_CHECK: Final = "load64(slot_header(self->ring, slot)) == sequence"
C_SLOW: Final = "meanwhile(self->ring, fd, slot)"
C_LEASE: Final = f"""
    if ({C_LOCK}) {{
        if ({C_CHECK})
            return new_lease(self, slot, sequence);
        set_lock(fd, F_UNLCK, slot);
    }}
"""
C_CLAIM: Final = """
    if (set_lock(fd, F_WRLCK, slot) < 0)
        return 0;
"""
C_ZERO: Final = "store64(header, 0);"
C_LOANED: Final = " && !self->loaned[slot]"

COMPILED_FAULTS: Final = {
    "lease: without 'lock'": CompiledFault(C_LEASE, C_LEASE.replace(C_LOCK, "1")),
    "lease: without 'check'": CompiledFault(f"if ({C_CHECK})", "if (1)"),
    "lease: 'check' before 'lock'": CompiledFault(
        C_LEASE, C_LEASE.replace(C_LOCK, f"{C_CHECK} && {C_SLOW} && {C_LOCK}").replace(f"if ({C_CHECK})", "if (1)")
    ),
    "lease: unlocked while the view lives": CompiledFault(
        C_LEASE, C_LEASE.replace(f"if ({C_CHECK})", f"if ({C_CHECK} && set_lock(fd, F_UNLCK, slot) == 0)")
    ),
    "lease: not unlocked after a failed check": CompiledFault(
        "        set_lock(fd, F_UNLCK, slot);\n    }\n    self->overruns++;", "    }\n    self->overruns++;"
    ),
    "claim: a slot that is loaned too": CompiledFault(C_LOANED, ""),
    "publish: without 'lock'": CompiledFault(C_CLAIM, "\n    (void)fd;\n"),
    "publish: without 'zero'": CompiledFault(C_ZERO, ""),
    "publish: 'header' and 'seq' before 'first'": CompiledFault(
        C_ZERO, "store64(header, fields[EPOCH + 1] = self->next_sequence);"
    ),
    "slow between look and lock": CompiledFault(f"if ({C_LOCK})", f"if ({C_SLOW} && {C_LOCK})"),
}


def build(names: Iterable[str], library: Path) -> None:
    """Compile the steps with faults.

    Raises:
        ValueError: A fault's piece is not in the source, or more than once.
    """
    source = C_SOURCE.read_text().replace(C_BEFORE_LEASE, C_MEANWHILE + C_BEFORE_LEASE)
    for name in names:
        piece, instead = COMPILED_FAULTS[name]
        if source.count(piece) != 1:
            raise ValueError(f"{name}: {C_SOURCE.name} no longer has the lines that it is about")
        source = source.replace(piece, instead)
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    include = sysconfig.get_path("include")
    subprocess.run(
        [*compiler, "-O2", "-shared", "-fPIC", f"-I{include}", "-x", "c", "-", "-o", str(library)],
        input=source.encode(),
        check=True,
    )


def load(library: Path) -> None:
    """Take the steps of a library that :func:`build` has made, in this process."""
    spec = importlib.util.spec_from_file_location("framebus.ring._ring_c", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    backend.steps = module


_sources: dict[str, str] = {}
"""Functions that have a fault already."""


def apply(name: str) -> None:
    """Put the fault into this process, which takes its steps in Python from now on."""
    backend.steps = steps
    owner, function, piece, instead = FAULTS[name]
    source = _sources.get(function) or textwrap.dedent(inspect.getsource(getattr(owner, function)))
    if source.count(piece) != 1:
        raise ValueError(f"{name}: {owner.__name__}.{function} no longer has the lines that it is about")
    scope: dict[str, object] = {}
    _sources[function] = source.replace(piece, instead)
    exec(_sources[function], {**vars(sys.modules[owner.__module__]), "meanwhile": meanwhile}, scope)
    setattr(owner, function, scope[function])
