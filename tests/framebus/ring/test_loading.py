"""The compiled steps keep nothing outside of their module: it may be loaded twice, and in other interpreters."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
import weakref
from types import ModuleType

import pytest

from framebus.ring.frame_header import Description
from framebus.ring.layout import Geometry
from framebus.ring.publisher_ring import PublisherRing
from framebus.ring.subscriber_ring import SubscriberRing
from tests.support import ROOT

DESCRIPTION = Description(2, 3, 1, "|u1", "gray").pack()
IN_ANOTHER_INTERPRETER = """
import importlib, sys
try:
    interpreters = importlib.import_module("_interpreters")
    make = lambda: interpreters.create("legacy")
except ImportError:
    interpreters = importlib.import_module("_xxsubinterpreters")
    make = lambda: interpreters.create(isolated=False)
inner = '''
import os, sys, types
sys.path.insert(0, ROOT)
# Without the package's __init__: numpy warns of interpreters that are not the main one.
sys.modules["framebus"] = package = types.ModuleType("framebus")
package.__path__ = [ROOT + "/framebus"]
from framebus.ring import _ring_c
try:
    _ring_c.Reader(None, 1, 1, 1, True, 1)
except AttributeError as error:
    os.write(1, f"{len(_ring_c.LAYOUT) > 20} {error}\\\\n".encode())
'''
from framebus.ring import _ring_c
for _ in range(2):
    number = make()
    failed = interpreters.run_string(number, inner.replace("ROOT", repr(sys.argv[1])))
    assert not failed, failed
    interpreters.destroy(number)
try:
    _ring_c.Writer(None, 1, 1, 1, 1, 1, 1)
except AttributeError as error:
    print(error)
"""


def load(name: str) -> ModuleType:
    """The compiled module under another name, beside the one that is in use."""
    from framebus.ring import _ring_c  # noqa: PLC0415  it may not be there

    spec = importlib.util.spec_from_file_location(f"{name}._ring_c", _ring_c.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("compiled_steps")
def test_two_modules_of_one_file_know_nothing_of_each_other(stream: str) -> None:
    first, second = load("first"), load("second")
    assert first.Writer is not second.Writer
    publisher = PublisherRing(stream, Geometry.for_frames(5, 6, max_loans=2))
    geometry = publisher.geometry
    sizes = geometry.slots, geometry.slot_bytes, geometry.first_slot
    writers = [module.Writer(publisher.segment, *sizes, 1, 1, 1) for module in (first, second)]
    claim = writers[0].claim(DESCRIPTION)
    assert type(claim) is first.Claim
    with pytest.raises(ValueError, match="not an open one of this writer"):
        writers[1].publish(claim, 1, 2)
    assert writers[0].publish(claim, 1, 2) > 0
    readers = [module.Reader(SubscriberRing(stream).segment, *sizes, False, 0) for module in (first, second)]
    leases = [reader.take() for reader in readers]
    assert [type(lease) for lease in leases] == [first.Lease, second.Lease]
    assert leases[0].header == leases[1].header
    with pytest.raises(TypeError, match="resumes from a reader"):
        readers[0].resume_from(readers[1], 1)
    del claim, leases, readers, writers
    publisher.close(unlink=True)


@pytest.mark.usefixtures("compiled_steps")
def test_a_module_that_nothing_uses_any_more_is_freed_but_not_before() -> None:
    module = load("brief")
    alive, kind = weakref.ref(module), weakref.ref(module.Writer)
    writer = module.Writer(Still(), 0, 1, 1, 1, 1, 1)
    del module
    gc.collect()
    assert alive() is not None
    assert writer.claim(b"") is None
    del writer
    gc.collect()
    assert (alive(), kind()) == (None, None)


class Still:
    """A segment without slots."""

    memory = bytearray(4096)
    fd = -1

    @property
    def address(self) -> int:
        """Where it is."""
        import ctypes  # noqa: PLC0415  only here

        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))


@pytest.mark.usefixtures("compiled_steps")
def test_another_interpreter_of_the_process_may_import_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_INTERPRETER, str(ROOT)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    missing = "'NoneType' object has no attribute 'address'"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"True {missing}"] * 2 + [missing]
