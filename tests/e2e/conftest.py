"""One demo and one ``churn up`` for all tests that look at them, each started as README writes it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.people import Demo, Project, Served, published


@pytest.fixture(scope="session")
def demo(homes: Path) -> Demo:
    project = Project(homes / "demo")
    printed = project.run("uv", "run", "churn", "demo")
    return Demo(project, printed, project.left(), published(project))


@pytest.fixture(scope="session")
def project(demo: Demo) -> Project:
    return demo.project


@pytest.fixture(scope="session")
def served(project: Project) -> Iterator[Served]:
    """``churn up``, which one Ctrl-C ends with all that it started."""
    with project.serving("uv", "run", "churn", "up") as served:
        yield served
        served.command.process.send_signal(signal.SIGINT)  # uv hands it on
        assert served.command.process.wait(60) == 0, served.command.printed
        assert project.left() == []
