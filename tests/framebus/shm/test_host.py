"""Where a process runs, and how much memory it may take there."""

from __future__ import annotations

from pathlib import Path

import pytest

from framebus.shm import host


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without containers and without control groups."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(host, "_ACCOUNT", tmp_path / "serviceaccount")
    monkeypatch.setattr(host, "_CONTAINER_MARKS", (tmp_path / "docker", tmp_path / "podman"))
    monkeypatch.setattr(host, "_MEMORY_LIMITS", (tmp_path / "max", tmp_path / "limit"))


def test_a_machine_is_neither_container_nor_pod() -> None:
    assert (host.is_container(), host.is_pod()) == (False, False)


def test_a_container_of_docker_is_not_a_pod(tmp_path: Path) -> None:
    (tmp_path / "docker").touch()
    assert (host.is_container(), host.is_pod()) == (True, False)


def test_a_pod_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert (host.is_container(), host.is_pod()) == (True, True)


def test_a_pod_is_known_by_its_account(tmp_path: Path) -> None:
    (tmp_path / "serviceaccount").mkdir()
    assert (host.is_container(), host.is_pod()) == (True, True)


@pytest.mark.parametrize(
    ("files", "limit_bytes"),
    [
        ({}, None),
        ({"max": "max\n"}, None),
        ({"max": "268435456\n"}, 1 << 28),
        ({"limit": "9223372036854771712\n"}, None),
        ({"limit": "268435456\n"}, 1 << 28),
    ],
)
def test_the_memory_limit_is_that_of_either_version(
    tmp_path: Path, files: dict[str, str], limit_bytes: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert host.memory_limit_bytes() == limit_bytes


def test_the_machine_has_memory() -> None:
    assert host.machine_memory_bytes() > 1 << 28
