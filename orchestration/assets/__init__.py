"""The assets, one module for each kind of work; ``metadata`` builds the metadata that several of them share."""

import json
import tomllib
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import dagster as dg

_DESCRIPTIONS = tomllib.loads(files("orchestration.assets").joinpath("descriptions.toml").read_text("utf-8"))

# Made by docs/generate.py: the table of each asset that has one, and its columns.
_TABLES = json.loads(files("orchestration.assets").joinpath("tables.json").read_text("utf-8"))


def _described(name: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    if (table := _TABLES.get(name)) is not None:
        schema = dg.TableSchema([dg.TableColumn(*column) for column in table["columns"]])
        metadata = {"dagster/table_name": f"public.{table['name']}", "dagster/column_schema": schema}
    return {"description": _DESCRIPTIONS[name], "owners": ["team:retention"], "metadata": metadata}


def asset_of_variants(name: str, group: str, *deps: str, **more: Any) -> dg.AssetSpec:
    """Return the specification of an asset that is partitioned by variant, as ``descriptions.toml`` describes it."""
    return dg.AssetSpec(name, group_name=group, deps=deps, skippable=True, **_described(name), **more)


def asset_of_fleet(name: str, group: str, *deps: str, **more: Any) -> Callable[..., dg.AssetsDefinition]:
    """Return the decorator of an asset that is of all variants together, as ``descriptions.toml`` describes it."""
    made: Callable[..., dg.AssetsDefinition]
    made = dg.asset(name=name, group_name=group, deps=deps, **_described(name), **more)
    return made
