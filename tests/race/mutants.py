"""Faults to put into the real code, one step moved or left out: what the race programs must find.

A fault replaces a piece of the code as it is in ``framebus/ring/`` now: of a function's syntax tree in ``claims.py`` or
``leases.py``, or of the tokens of ``_ring_c.c``, which is compiled anew. So line breaks and comments do not matter.
If the piece is no longer there, the fault cannot be made, so none outlives the code that it is about. The names are
those of the model's mutants (``verification/mutants.py``).
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
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
    """A piece of a function, one expression or statement, and what stands there instead."""

    owner: type
    function: str
    piece: str
    instead: str


class CompiledFault(NamedTuple):
    """Pieces of ``_ring_c.c``, and what stands there instead of each."""

    pieces: dict[str, str]


SLOW: Final = "slow between look and lock"
MEANWHILE_S: Final = 0.05


def meanwhile(segment: Segment, slot: int) -> None:
    """Wait until a publisher has begun to write the slot and let it go, alive or dead; not for long."""
    end_s = time.monotonic() + MEANWHILE_S
    values, seq = segment.words, words.SEQ_WORDS[slot]
    while values[seq] and time.monotonic() < end_s:
        time.sleep(0)
    while segment.is_locked(words.LOCK_READ[slot]) and time.monotonic() < end_s:
        time.sleep(0)


LOCK: Final = "not self._try_lock(slot)"
CHECK: Final = "segment.words[SEQ_WORDS[slot]] != sequence"
CLAIM: Final = "not segment.try_lock(LOCK_WRITE[slot])"
ZERO: Final = "words[seq] = 0"
FAILED: Final = "self.overruns += 1"
VIEW: Final = "return lease"
BEFORE_LOCK: Final = "self._sweep()"

FAULTS: Final = {
    "lease: without 'lock'": Fault(leases.Reader, "_lease", LOCK, "False"),
    "lease: without 'check'": Fault(leases.Reader, "_lease", CHECK, "False"),
    "lease: 'check' before 'lock'": Fault(
        leases.Reader, "_lease", f"{LOCK} or {CHECK}", f"{CHECK} or meanwhile(segment, slot) or {LOCK}"
    ),
    "lease: unlocked while the view lives": Fault(
        leases.Reader, "_lease", VIEW, f"segment.unlock(UNLOCK[slot]); {VIEW}"
    ),
    # What is not registered, and has another slot, does not unlock this one when it ends.
    "lease: not unlocked after a failed check": Fault(
        leases.Reader, "_lease", FAILED, f"lease.slot = NO_SLOT; del self._leases[lease._reference]; {FAILED}"
    ),
    "claim: a slot that is loaned too": Fault(
        claims.Writer, "_claim_oldest", "{self._newest, *claims.values()}", "{self._newest}"
    ),
    "publish: without 'lock'": Fault(claims.Writer, "_lock", CLAIM, "False"),
    "publish: without 'zero'": Fault(claims.Writer, "_lock", ZERO, "pass"),
    "publish: 'header' and 'seq' before 'first'": Fault(
        claims.Writer, "_lock", ZERO, "words[seq + SEQUENCE_WORD] = words[seq] = self.next_sequence"
    ),
    SLOW: Fault(leases.Reader, "_lease", BEFORE_LOCK, f"{BEFORE_LOCK}; meanwhile(segment, slot)"),
}
"""The last is none: a subscriber that takes its time makes what may happen meanwhile likely."""


class _Replacement(ast.NodeTransformer):
    """Puts a fault into a syntax tree."""

    def __init__(self, fault: Fault) -> None:
        (piece,), self._instead = ast.parse(fault.piece).body, fault.instead
        self._piece = ast.dump(piece)
        self._expression = ast.dump(piece.value) if isinstance(piece, ast.Expr) else ""
        self.found = 0

    def visit(self, node: ast.AST) -> ast.AST | list[ast.stmt]:
        """Replace a node that is the piece; look into any other."""
        if isinstance(node, ast.stmt) and ast.dump(node) == self._piece:
            self.found += 1
            return ast.parse(self._instead).body
        if isinstance(node, ast.expr) and ast.dump(node) == self._expression:
            self.found += 1
            return ast.parse(self._instead, mode="eval").body
        return self.generic_visit(node)


def function_of(source: str, name: str) -> ast.FunctionDef:
    """The syntax tree of the only function of that name."""
    (found,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == name)
    return found


def put_in(name: str, function: ast.FunctionDef) -> None:
    """Put the fault into a function's syntax tree.

    Raises:
        ValueError: The fault's piece is not in the function, or more than once.
    """
    replacement = _Replacement(FAULTS[name])
    replacement.visit(function)
    if replacement.found != 1:
        raise ValueError(f"{name}: {function.name} no longer has the code that it is about")


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
C_LEASE: Final = "static PyObject *lease_slot("
C_LOCK: Final = "try_lock(fd, F_RDLCK, slot)"
C_CHECK: Final = "if (load64(slot_header(self->ring, slot)) == sequence)"
C_IS_THERE: Final = C_CHECK.removeprefix("if ")
C_SLOW: Final = "meanwhile(self->ring, fd, slot)"
C_CLAIM: Final = "fd < 0 ? 0 : try_lock(fd, F_WRLCK, slot)"
C_ZERO: Final = "store64(header, 0);"
C_FAILED: Final = "self->overruns++;"

COMPILED_FAULTS: Final = {
    "lease: without 'lock'": CompiledFault({C_LOCK: "1"}),
    "lease: without 'check'": CompiledFault({C_CHECK: "if (1)"}),
    "lease: 'check' before 'lock'": CompiledFault(
        {C_CHECK: "if (1)", C_LOCK: f"({C_IS_THERE} && {C_SLOW} ? {C_LOCK} : 0)"}
    ),
    "lease: unlocked while the view lives": CompiledFault(
        {C_CHECK: f"if ({C_IS_THERE} && set_lock(fd, F_UNLCK, slot) == 0)"}
    ),
    "lease: not unlocked after a failed check": CompiledFault(
        {f"if (unlock(fd, slot) < 0) return NULL; }} {C_FAILED}": f"}} {C_FAILED}"}
    ),
    "claim: a slot that is loaned too": CompiledFault({"|| self->loaned[slot])": ")"}),
    "publish: without 'lock'": CompiledFault({C_CLAIM: "((void)fd, 1)"}),
    "publish: without 'zero'": CompiledFault({C_ZERO: ""}),
    "publish: 'header' and 'seq' before 'first'": CompiledFault(
        {C_ZERO: "store64(header, ((uint64_t *)header)[SEQUENCE_WORD] = self->next_sequence);"}
    ),
    SLOW: CompiledFault({C_LOCK: f"({C_SLOW} ? {C_LOCK} : 0)"}),
}
_C_TOKEN: Final = re.compile(
    r"""
    /\*.*?\*/ | //[^\n]*                         # a comment
    | (?P<token> ^[ \t]*\# (?:[^\n]*\\\n)* [^\n]*  # a directive, with its continued lines
    | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' | \w+
    | -> | \+\+ | -- | << | >> | && | \|\| | [-+*/%&|^<>=!]= | [^\w\s] )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def tokens_of(source: str) -> list[re.Match[str]]:
    """The tokens of a source in C, without its comments; each directive is one."""
    return [match for match in _C_TOKEN.finditer(source) if match["token"]]


def replace_tokens(source: str, piece: str, instead: str) -> str:
    """Replace a piece of a source in C, however it is laid out.

    Raises:
        ValueError: The piece is not in the source, or more than once.
    """
    tokens, wanted = tokens_of(source), [match["token"] for match in tokens_of(piece)]
    texts, length = [match["token"] for match in tokens], len(wanted)
    starts = [start for start in range(len(texts)) if texts[start : start + length] == wanted]
    if len(starts) != 1:
        raise ValueError(f"{C_SOURCE.name} has {len(starts)} times what should be there once: {piece}")
    first, last = tokens[starts[0]], tokens[starts[0] + length - 1]
    return source[: first.start()] + instead + source[last.end() :]


def with_faults(names: Iterable[str], source: str) -> str:
    """The source of the compiled steps with faults.

    Raises:
        ValueError: A fault's piece is not in the source, or more than once.
    """
    source = replace_tokens(source, C_LEASE, C_MEANWHILE + C_LEASE)
    for name in names:
        for piece, instead in COMPILED_FAULTS[name].pieces.items():
            source = replace_tokens(source, piece, instead)
    return source


def compile_steps(source: str, library: Path | str, *options: str) -> None:
    """Compile the steps.

    Args:
        source: Their source.
        library: Where the module goes.
        options: More options for the compiler.
    """
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    folders = [f"-I{sysconfig.get_path('include')}", f"-I{C_SOURCE.parent}"]
    command = [*compiler, "-O2", "-std=c11", "-shared", "-fPIC", *folders, *options, "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=source.encode(), check=True)


def build(names: Iterable[str], library: Path) -> None:
    """Compile the steps with faults.

    Raises:
        ValueError: A fault's piece is not in the source, or more than once.
    """
    compile_steps(with_faults(names, C_SOURCE.read_text()), library)


def load(library: Path) -> None:
    """Take the steps of a library that :func:`build` has made, in this process."""
    spec = importlib.util.spec_from_file_location("framebus.ring._ring_c", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    backend.steps = module


_functions: dict[str, ast.FunctionDef] = {}
"""Functions that have a fault already."""


def apply(name: str) -> None:
    """Put the fault into this process, which takes its steps in Python from now on.

    Raises:
        ValueError: The fault's piece is not in the function, or more than once.
    """
    backend.steps = steps
    owner, function, _, _ = FAULTS[name]
    if function not in _functions:
        source = textwrap.dedent(inspect.getsource(getattr(owner, function)))
        _functions[function] = function_of(source, function)
    put_in(name, _functions[function])
    scope: dict[str, object] = {}
    module = ast.fix_missing_locations(ast.Module([_functions[function]], []))
    exec(
        compile(module, inspect.getfile(owner), "exec"),
        {**vars(sys.modules[owner.__module__]), "meanwhile": meanwhile},
        scope,
    )
    setattr(owner, function, scope[function])
