"""The demo is what a person tries first: one command, on a bare machine, that may be interrupted and run again."""

import re
import signal
from pathlib import Path

import polars as pl
import pytest

from churn.demo import VARIANTS
from churn.deployment import open_deployment
from churn.settings import load_settings
from churn.store.predictions import read_current
from tests.e2e.people import Project

KEYS = ["base", "company-clienta", "geography-eu.company-clientb", "geography-us"]
CURRENT = """
SELECT variant, count(*) AS n_rows, count(DISTINCT account_id) AS n_accounts, max(model_version) AS model_version
FROM churn_predictions_current GROUP BY variant ORDER BY variant COLLATE "C"
"""


@pytest.fixture(scope="module")
def first_run(homes: Path) -> tuple[Project, str]:
    """A project where the demo ran once, and what it printed."""
    project = Project(homes / "demo")
    return project, project.run("churn", "demo")


def current(project: Project) -> pl.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_HOME", str(project.home))
        with open_deployment(load_settings()) as deployment:
            return read_current(deployment.database, CURRENT)


def assert_each_account_has_one_prediction_by_the_first_version(project: Project) -> None:
    held = current(project)
    assert held["variant"].to_list() == KEYS
    assert held["n_rows"].to_list() == held["n_accounts"].to_list() == [1000] * len(KEYS)
    assert held["model_version"].to_list() == [1] * len(KEYS)


def test_it_shows_what_came_of_every_variant_and_where_to_look(first_run: tuple[Project, str]):
    _, printed = first_run
    predictions, sources = re.split("Where it came from", printed.partition("Most likely to churn")[2])

    for key in KEYS:
        assert re.search(rf"{re.escape(key)} +│ +\d+ │ 0\.\d{{3}} █", predictions)
        assert re.search(rf"{re.escape(key)} +│ +\d+ │ +1,000 │ 0\.\d{{3}} │ v1 +│ local", sources)
    assert "because S3 is not configured (MLFLOW_S3_BUCKET)" in sources
    assert re.search(r"uv run churn up .*http://127.0.0.1:3000.*http://127.0.0.1:5000\n", sources)
    assert max(map(len, sources.splitlines())) <= 110
    assert sorted(variant.key for variant in VARIANTS) == KEYS


def test_predictions_of_every_variant_are_in_postgresql_and_nothing_is_left_running(first_run: tuple[Project, str]):
    project, _ = first_run

    assert project.processes() == []
    assert_each_account_has_one_prediction_by_the_first_version(project)
    assert project.processes() == []


def test_a_second_run_takes_over_what_the_first_left(first_run: tuple[Project, str]):
    project, _ = first_run

    printed = project.run("churn", "demo")

    assert "registered models:/" not in printed
    assert printed.count("is its champion") == len(KEYS)
    assert_each_account_has_one_prediction_by_the_first_version(project)
    assert project.processes() == []


@pytest.mark.slow
def test_two_demos_at_once_in_two_homes_do_not_meet(homes: Path):
    one, other = Project(homes / "one"), Project(homes / "other")

    with one.running("churn", "demo") as first:
        other.run("churn", "demo")
        assert first.process.wait(120) == 0, first.printed

    for project in (one, other):
        assert_each_account_has_one_prediction_by_the_first_version(project)
        assert project.processes() == []


@pytest.mark.slow
def test_a_demo_interrupted_in_any_step_leaves_no_postgresql_and_goes_on_when_run_again(homes: Path):
    project = Project(homes / "interrupted")
    for step in ("PostgreSQL", "Databases, schemas, roles", "Player activity", "Experiments and models in MLflow"):
        with project.running("churn", "demo") as command:
            command.wait_until_printed(f"✓ {step}")

            status = command.stop(signal.SIGINT)
            if status == 0 and "Exception ignored in" in command.printed:
                continue  # Python drops an interrupt that comes inside a finalizer; a person would press again
            assert status == 130, command.printed
            assert "churn demo: interrupted; run it again to go on" in command.printed
            assert "Traceback" not in command.printed
        assert project.processes() == []

    project.run("churn", "demo")
    assert_each_account_has_one_prediction_by_the_first_version(project)
