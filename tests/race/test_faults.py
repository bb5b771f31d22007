"""Each fault of the race programs can still be put into the code, whatever that code is laid out like."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from functools import cache

import pytest

from framebus.ring import leases
from tests.race.mutants import (
    C_SOURCE,
    COMPILED_FAULTS,
    FAULTS,
    SLOW,
    compile_steps,
    function_of,
    put_in,
    tokens_of,
    with_faults,
)
from tests.support import lacks

WIDTHS = (40, 200)


@cache  # several faults are of the same source
def formatted(source: str, width: int) -> str:
    """The source in Python in lines of another length."""
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", str(width), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def with_fault(source: str, name: str) -> str:
    """The function with the fault, as a syntax tree is printed."""
    function = function_of(source, FAULTS[name].function)
    put_in(name, function)
    return ast.unparse(function)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_goes_into_python_however_it_is_formatted(name: str) -> None:
    source = textwrap.dedent(inspect.getsource(FAULTS[name].owner))
    faulty = with_fault(source, name)
    assert faulty != ast.unparse(function_of(source, FAULTS[name].function))
    others = {ast.unparse(ast.parse(source)), *(formatted(source, width) for width in WIDTHS)} - {source}
    assert len(others) >= 2
    for other in others:
        assert with_fault(other, name) == faulty


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_whose_code_is_gone_is_refused(name: str) -> None:
    gone = ast.parse("def gone(self):\n    pass").body[0]
    assert isinstance(gone, ast.FunctionDef)
    with pytest.raises(ValueError, match="no longer has the code"):
        put_in(name, gone)
    with pytest.raises(ValueError, match="should be there once"):
        with_faults([name], C_SOURCE.read_text() * 2)


def texts(source: str) -> list[str]:
    return [match["token"] for match in tokens_of(source)]


def relaid(source: str) -> str:
    """The source in C, a token a line and without its comments."""
    return "\n".join(texts(source)) + "\n"


def test_both_backends_have_the_same_faults() -> None:
    assert list(FAULTS) == list(COMPILED_FAULTS)


@pytest.mark.parametrize("name", COMPILED_FAULTS)
def test_a_fault_goes_into_c_however_it_is_laid_out(name: str) -> None:
    source = C_SOURCE.read_text()
    faulty = with_faults([name], source)
    assert texts(faulty) != texts(with_faults([], source))
    assert texts(with_faults([name], relaid(source))) == texts(faulty)


@pytest.mark.parametrize("name", ["lease: without 'check'", "lease: not unlocked after a failed check"])
def test_a_subscriber_with_a_fault_may_be_slow_too(name: str) -> None:
    function, source = function_of(inspect.getsource(leases), "_lease"), C_SOURCE.read_text()
    put_in(name, function)
    put_in(SLOW, function)
    assert "meanwhile(segment, slot)" in ast.unparse(function)
    assert texts(with_faults([name, SLOW], source)) != texts(with_faults([name], source))


@pytest.mark.slow
def test_what_has_a_fault_compiles() -> None:
    try:
        for name in COMPILED_FAULTS:
            compile_steps(with_faults([name], relaid(C_SOURCE.read_text())), "/dev/null", "-fsyntax-only", "-Werror")
    except FileNotFoundError:
        lacks("no C compiler: run 'make system-packages'")
