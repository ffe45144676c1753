"""At stake: a file in a cache that is empty, cut off or gone must cost a fetch, and never a variant's week."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from churn.registry.cache import ModelCache, shrink

FILES = {"model.ubj": b"trees", "golden_rows.json": b"{}"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def become_old_layout(path: Path) -> None:
    path.unlink()
    (path.parent / "model.ubj").write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": cut,
    "gone": Path.unlink,
    "its folder gone": lambda path: shutil.rmtree(path.parent),
    "another name": lambda path: path.rename(path.with_name("0" * 64)),
    "the layout of earlier releases": become_old_layout,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_fetched_again_and_stored_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    cache = ModelCache(tmp_path)
    cache.store("m-1", FILES)
    (entry,) = (tmp_path / "m-1").iterdir()
    assert cache.load("m-1") == FILES
    damage(entry)

    assert cache.load("m-1") is None
    cache.store("m-1", FILES)
    assert cache.load("m-1") == FILES


def test_a_cache_that_cannot_be_written_or_read_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ModelCache(tmp_path / "file")

    cache.store("m-1", FILES)

    assert cache.load("m-1") is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    for i in range(4):
        cache.store(f"m-{i}", {"model.ubj": bytes([i]) * 1_000})
        (entry,) = (tmp_path / f"m-{i}").iterdir()
        os.utime(entry, (i, i))
    cache.load("m-0")

    shrink(tmp_path, max_bytes=2_500)

    assert [i for i in range(4) if cache.load(f"m-{i}")] == [0, 3]
