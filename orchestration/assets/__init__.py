"""The assets, one module for each kind of work; ``metadata`` builds the metadata that several of them share."""

import tomllib
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import dagster as dg

_DESCRIPTIONS = tomllib.loads(files("orchestration.assets").joinpath("descriptions.toml").read_text("utf-8"))


def asset_of_variants(name: str, group: str, *deps: str, **more: Any) -> dg.AssetSpec:
    """Return the specification of an asset that is partitioned by variant, as ``descriptions.toml`` describes it."""
    more |= {"description": _DESCRIPTIONS[name], "owners": ["team:retention"]}
    return dg.AssetSpec(name, group_name=group, deps=deps, skippable=True, **more)


def asset_of_fleet(name: str, group: str, *deps: str, **more: Any) -> Callable[..., dg.AssetsDefinition]:
    """Return the decorator of an asset that is of all variants together, as ``descriptions.toml`` describes it."""
    more |= {"description": _DESCRIPTIONS[name], "owners": ["team:retention"]}
    decorator: Callable[..., dg.AssetsDefinition] = dg.asset(name=name, group_name=group, deps=deps, **more)
    return decorator
