"""At stake: CI that tests something else than people do, and a pipeline that pushes or deploys what nobody meant to.
GitHub itself is not asked; its schema for workflows and zizmor, which knows the usual holes, are.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
# YAML 1.1 takes the key `on` for a boolean.
WORKFLOWS: dict[str, dict[Any, Any]] = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, workflow in WORKFLOWS.items():
        for job_name, job in workflow["jobs"].items():
            yield f"{name}.{job_name}", job


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job.get("steps", ()) if "run" in step]


def recipes() -> dict[str, str]:
    """The justfile's recipes, each with its lines."""
    text = (ROOT / "justfile").read_text()
    found = re.findall(r"^([a-z][a-z-]*)\b[^:\n]*:(?!=)[^\n]*\n((?:[ \t]+[^\n]*\n?|\n(?=[ \t]))*)", text, re.MULTILINE)
    return dict(found)


@pytest.mark.parametrize(
    "command",
    [
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, FILES)],
        ["zizmor", "--offline", "."],
    ],
    ids=["schema", "zizmor"],
)
def test_the_workflows_have_no_finding(command: list[str]) -> None:
    environment = {"PATH": PATH, "HOME": str(Path.home())}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_recipe_that_is_called_exists_and_every_job_calls_one() -> None:
    called = {name: re.findall(r"\bjust ([a-z-]+)", "\n".join(commands(job))) for name, job in jobs()}
    known = recipes()
    assert not {recipe for found in called.values() for recipe in found} - set(known)
    assert {name for name, job in jobs() if not called[name]} == {name for name, job in jobs() if "uses" in job}
    assert {"check", "lint-docker", "lint-workflows", "test", "audit", "docs"} <= {
        recipe for name, found in called.items() if name.startswith("ci.") for recipe in found
    }


def test_ci_tests_by_the_very_command_of_the_readme_and_of_the_gate() -> None:
    [recipe] = [line.strip() for line in recipes()["test"].splitlines() if line.strip()]
    command = recipe.removesuffix("{{args}}").strip()
    assert f"```bash\n{command}\n```" in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci/run").read_text().splitlines()


def test_ci_tests_the_oldest_and_the_newest_python_and_the_image_has_the_newest() -> None:
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest, above = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", allowed).groups())  # type: ignore[union-attr]
    tested = WORKFLOWS["ci"]["jobs"]["test"]
    assert tested["strategy"]["matrix"]["python"] == [f"3.{oldest}", f"3.{above - 1}"]
    assert tested["env"]["UV_PYTHON"] == "${{ matrix.python }}"
    bases = re.findall(r"^FROM python:(\d+\.\d+)\.", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(bases) == {f"3.{above - 1}"}
    assert f"newest=3.{above - 1}" in (ROOT / ".ci/run").read_text().splitlines()


def test_the_folder_of_scripts_is_installed_as_the_project_is() -> None:
    project, folder = (
        tomllib.loads((ROOT / path / "pyproject.toml").read_text())["project"] for path in ("", "experiment_tracking")
    )
    for name in ("version", "requires-python", "dependencies", "scripts"):
        assert folder[name] == project[name], name


def test_every_action_is_pinned_to_one_commit_that_names_its_version() -> None:
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for line in re.findall(r"uses: (.+)$", path.read_text(), re.MULTILINE):
            if not line.startswith("./"):
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
                pins.setdefault(line.split("@")[0], set()).add(line)
    assert len(pins) >= 6
    assert all(len(lines) == 1 for lines in pins.values()), pins


def test_uv_is_of_one_version_everywhere() -> None:
    versions = {
        step["with"]["version"]
        for _, job in jobs()
        for step in job.get("steps", ())
        if step.get("uses", "").startswith("astral-sh/setup-uv@")
    }
    [in_image] = re.findall(r"^FROM ghcr\.io/astral-sh/uv:(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert versions == {in_image}


@each_file
def test_a_workflow_may_do_nothing_that_a_job_does_not_ask_for(path: Path) -> None:
    workflow = WORKFLOWS[path.stem]
    assert workflow["permissions"] == {}
    triggers = workflow[True]
    assert not {"pull_request_target", "workflow_run"} & set(triggers)
    assert "concurrency" in workflow or set(triggers) == {"workflow_call"}
    for name, job in workflow["jobs"].items():
        assert "permissions" in job, name
        assert "timeout-minutes" in job or "uses" in job, name


def test_only_a_tag_is_pushed_and_nothing_else_may_write() -> None:
    writing = {
        name: {scope for scope, access in job["permissions"].items() if access == "write"}
        for name, job in jobs()
        if "write" in job["permissions"].values()
    }
    assert writing == {
        "image.push": {"packages", "id-token", "attestations"},
        "image.deploy": {"id-token"},
        "deploy.staging": {"id-token"},
        "deploy.production": {"id-token"},
        "deploy-to.deploy": {"id-token"},
    }
    assert WORKFLOWS["image"]["jobs"]["push"]["if"] == "github.ref_type == 'tag'"
    [push] = [command for command in commands(WORKFLOWS["image"]["jobs"]["push"]) if "just image" in command]
    assert all(flag in push for flag in ("--push", "--sbom=true", "--provenance=mode=max"))


def test_production_gets_what_staging_got_after_it_and_both_ask_their_environment() -> None:
    staged = WORKFLOWS["deploy"]["jobs"]
    assert staged["production"]["needs"] == "staging"
    assert {job["with"]["image"] for job in staged.values()} == {"${{ inputs.image }}"}
    assert {name: job["with"]["environment"] for name, job in staged.items()} == {name: name for name in staged}
    job = WORKFLOWS["deploy-to"]["jobs"]["deploy"]
    assert job["environment"] == "${{ inputs.environment }}"
    said = commands(job)
    verified = next(i for i, command in enumerate(said) if "gh attestation verify" in command)
    assert verified < next(i for i, command in enumerate(said) if "just deploy" in command)
