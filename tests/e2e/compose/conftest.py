"""One pipeline in containers, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.engine import Project, need_engine


@pytest.fixture(scope="package")
def pipeline() -> Iterator[Project]:
    """Run the services of ``compose.yaml`` from built images."""
    need_engine()
    project = Project()
    try:
        project.compose("build", timeout_s=600)
        project.compose("up", "-d")
        yield project
    finally:
        project.down()
