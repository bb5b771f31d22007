"""A pipeline in containers, for the tests of one module: two pipelines at a time are too much for two cores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.engine import Project, need_engine


@pytest.fixture(scope="module")
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
