"""At stake: the commands that this project began with. Whoever types them, from a clone, gets what they got."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import dagster as dg
import pytest

from orchestration.definitions import defs
from tests.support import ROOT


def test_dagster_dev_can_load_the_file_of_the_weekly_job() -> None:
    """``dagster dev -f orchestration/job.py`` loads the file by itself, and takes its only ``Definitions``."""
    spec = importlib.util.spec_from_file_location("job", ROOT / "orchestration/job.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert [name for name, value in vars(module).items() if isinstance(value, dg.Definitions)] == ["defs"]
    assert module.defs is defs


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The Python of an environment of its own, and this one's packages in place of two hundred downloads."""
    uv = shutil.which("uv") or pytest.skip("uv is not installed")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    for source in (["-e", "experiment_tracking"], ["-r", "experiment_tracking/requirements.txt"]):
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), *source]
        subprocess.run(command, check=True, cwd=ROOT)
    return python


@pytest.mark.slow  # it needs the package index, to build
def test_the_folder_of_scripts_is_installed_and_its_scripts_run_in_it(installed: Path, homes: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "CHURN_HOME": str(homes / "folder")}
    commands = {
        ("setup.py", "--geography", "US"): "experiment churn_prediction-geography-us (id 1): created",
        ("log_model.py", "--company", "ClientA"): "models:/churn-prediction-model-clienta/1",
    }
    for command, said in commands.items():
        done = subprocess.run(
            [str(installed), *command], cwd=ROOT / "experiment_tracking", env=environment, capture_output=True,
            text=True, timeout=120, check=True,
        )  # fmt: skip
        assert said in done.stdout
