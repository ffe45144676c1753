"""The demo is what a person tries first: one command, on a bare machine, that may be interrupted and run again."""

import signal
from pathlib import Path

import pytest

from tests.support.people import DEMO, Project, published

pytestmark = pytest.mark.slow  # tests/e2e/test_ui.py sees what one run shows
FIRST = [(key, n, n, 1) for key, n in DEMO.items()]


def test_a_second_run_takes_over_what_the_first_left(homes: Path):
    project = Project(homes / "demo")
    project.run("churn", "demo")

    printed = project.run("churn", "demo")

    assert "registered models:/" not in printed
    assert printed.count("is its champion") == len(DEMO)
    assert published(project) == FIRST
    assert project.left() == []


def test_two_demos_at_once_in_two_homes_do_not_meet(homes: Path):
    one, other = Project(homes / "one"), Project(homes / "other")

    with one.running("churn", "demo") as first:
        other.run("churn", "demo")
        assert first.process.wait(120) == 0, first.printed

    for project in (one, other):
        assert published(project) == FIRST
        assert project.left() == []


def test_a_demo_interrupted_in_any_step_leaves_no_postgresql_and_goes_on_when_run_again(homes: Path):
    project = Project(homes / "interrupted")
    for step in ("PostgreSQL", "Databases, schemas, roles", "Player activity", "Experiments and models in MLflow"):
        with project.running("churn", "demo") as command:
            command.wait_until_printed(f"✓ {step}")

            assert command.stop(signal.SIGINT) == 130, command.printed
            assert "churn demo: interrupted; run it again to continue" in command.printed
            assert "Traceback" not in command.printed
        assert project.left() == []

    project.run("churn", "demo")
    assert published(project) == FIRST
