"""At stake: a setting that cannot be meant is told before anything is scored, with what to do about it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from churn.deployment.settings import load_settings
from churn.errors import UsageError
from churn.variants import Variant
from churn.workflows.ray_engine import UnfitNodeError, Workers, load_ray, work_on_node


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


def test_a_process_of_this_machine_that_differs_is_no_node_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def changed(_: None) -> Iterator[tuple[dict[str, str], None]]:
        yield {"the code": "new"}, None

    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(UnfitNodeError, match=r"^a process of this machine differs .*: the code is new .* start again$"):
        work_on_node(Workers(None, changed, {"the code": "old"}, 2), lambda *_: None, Variant())
