"""At stake: a setting that cannot be meant is told before anything is scored, with what to do about it."""

import sys

import pytest

from churn.deployment.settings import load_settings
from churn.errors import UsageError
from churn.workflows.ray_engine import load_ray


@pytest.mark.parametrize("address", ["auto", "10.0.0.5:6379", "ray://head.internal:10001", "[fd00::5]:6379"])
def test_an_address_may_be(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_RAY_ADDRESS", address)

    assert load_settings().churn_ray_address == address


@pytest.mark.parametrize("address", ["head", "http://head:8265", "ray://head", "local", "head:six", "ray://u:p@head:1"])
def test_another_address_is_refused_by_the_settings_name(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_RAY_ADDRESS", address)

    with pytest.raises(UsageError, match="CHURN_RAY_ADDRESS"):
        load_settings()


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(UsageError, match="uv sync --extra ray"):
        load_ray()
