"""At stake: a notebook rots unseen. It must run from its first cell to its last on what scoring leaves, show figures
that the tables hold, and be committed without what somebody's players looked like.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from churn.deployment.services import Deployment
from churn.variants import Variant
from tests.support import ROOT
from tests.support.batches import week_request
from tests.support.inputs import monday, register_with_input
from tests.support.site import Run, Site

NOTEBOOK = ROOT / "notebooks" / "explore.ipynb"
US, EU = Variant("us"), Variant("eu")


@pytest.fixture
def fleet(site: Site, log_model: Run, deployment: Deployment) -> None:
    """Two variants; one was scored for two weeks, the other for one."""
    register_with_input(site, log_model, US, EU)
    scorer = deployment.scorer()
    scorer.score_variant(week_request(monday(1)).of(US))
    for variant in (US, EU):
        scorer.score_variant(week_request(monday()).of(variant))


def texts(cell: nbformat.NotebookNode) -> str:
    return "\n".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_the_tables_hold(
    site: Site, fleet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    _, batches, top, player, whys, scores, importance, effect, moves, _ = cells
    (_, n_before, _), (n_us, n_at_risk, mean) = site.rows(
        site.churn,
        "SELECT count(*), count(*) FILTER (WHERE is_at_risk), avg(churn_probability) FILTER (WHERE is_at_risk) "
        "FROM churn_predictions_current "
        "WHERE variant = 'geography-us' GROUP BY scored_week ORDER BY scored_week",
    )
    ((eu_at_risk,),) = site.rows(
        site.churn,
        "SELECT count(*) FROM churn_predictions_latest WHERE is_at_risk IS NOT FALSE AND variant = 'geography-eu'",
    )
    assert re.search(rf"geography-us ┆ {monday()} *┆ {n_us} *┆ {n_at_risk} *┆ {mean:.6f}", texts(batches))
    assert all("image/png" in cell.outputs[-1].data for cell in (scores, effect))
    assert "image/png" in player.outputs[-1].data
    assert f"shape: ({min(100, eu_at_risk)}, 5)" in texts(top)
    assert re.search(r"raises risk|lowers risk", texts(top))
    assert f"│ {monday()} " in texts(player)
    assert "total_handle" in texts(whys)
    assert "total_handle" in texts(importance)
    # In a month's first week some are no longer at risk, for whom a month of activity has become too old.
    assert re.search(rf"{monday()} ┆ 0 *┆ {n_before - n_at_risk} *┆ {n_at_risk} ", texts(moves))


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)

    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
