"""At stake: a file in a cache that is empty, cut off or gone must cost a fetch, and never a variant's week."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from churn.registry.cache import ArrayCache, shrink

KEYS = [f"{i:064x}" for i in range(4)]
FILES = {"model.ubj": np.frombuffer(b"trees", np.uint8), "golden_rows.json": np.frombuffer(b"{}", np.uint8)}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    path.rmdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": cut,
    "gone": Path.unlink,
    "its folder gone": lambda path: shutil.rmtree(path.parent),
    "another name": lambda path: path.rename(path.with_name("0" * 64)),
    "for a time a folder": become_a_folder,
}


def contents(cache: ArrayCache, key: str) -> dict[str, bytes] | None:
    found = cache.load(key)
    return None if found is None else {name: array.tobytes() for name, array in found.items()}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_fetched_again_and_stored_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    cache, expected = ArrayCache(tmp_path / "models"), {"model.ubj": b"trees", "golden_rows.json": b"{}"}
    cache.store(KEYS[1], FILES)
    (entry,) = (tmp_path / "models").iterdir()
    assert contents(cache, KEYS[1]) == expected
    damage(entry)

    assert cache.load(KEYS[1]) is None
    cache.store(KEYS[1], FILES)
    assert contents(cache, KEYS[1]) == expected


def test_a_cache_that_cannot_be_written_or_read_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ArrayCache(tmp_path / "file")

    cache.store(KEYS[0], FILES)

    assert cache.load(KEYS[0]) is None


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    for i, key in enumerate(KEYS):
        cache.store(key, {"model.ubj": np.full(1_000, i, np.uint8)})
        os.utime(tmp_path / key, (i, i))
    cache.load(KEYS[0])

    shrink(tmp_path, max_bytes=2_500)

    assert [i for i, key in enumerate(KEYS) if cache.load(key)] == [0, 3]
