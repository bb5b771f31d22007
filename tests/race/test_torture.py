"""A short torture, with the compiled steps and with those in Python; ``make soak MINUTES=...`` runs a long one."""

from __future__ import annotations

import pytest

from framebus.ring.backend import BACKEND
from tests.race import torture
from tests.support import report_of

pytestmark = pytest.mark.slow

SYMPTOMS = {
    "finalizer_waits": "hangs",
    "close_under_receiver": "AttributeError",
    "lost_loans_stay": "a lost loan is outstanding",
    "garbage_counts": "frames in garbage",
    "children_keep_all": "forked child",
    "children_read_frames": "read its parent's frame",
    "exhaustion_is_masked": "was not refused",
    "close_is_final": "left files",
}
"""What the torture says of each fault of old that is put back."""


@pytest.mark.parametrize("backend", ["c", pytest.param("python", marks=pytest.mark.long)])
@pytest.mark.usefixtures("compiled_steps")
def test_nothing_breaks(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv(BACKEND, backend)
    report = report_of("tests.race.torture", "--minutes", "0.1")
    counted = report["counted"]
    assert all(counted[what] for what in ("receive", "Closed", "close_others", "fork", "interrupted", "collect"))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["c", "python"])
@pytest.mark.parametrize("fault", torture.FAULTS)
@pytest.mark.usefixtures("compiled_steps")
def test_a_fault_of_old_is_found_when_it_is_put_back(monkeypatch: pytest.MonkeyPatch, fault: str, backend: str) -> None:
    monkeypatch.setenv(BACKEND, backend)
    # Chance decides what a torture meets, and most faults show within a second or two.
    said = ""
    for seed in range(1, 25):
        said = "\n".join(torture.run(2.0, seed, fault)["broken promises"])
        if SYMPTOMS[fault] in said:
            return
    pytest.fail(f"{seed} tortures did not find it; the last said: {said}")
