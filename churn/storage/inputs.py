"""The names and forms of a variant's input: a file, one packed by gzip or zstd, or a folder of parts, as Spark writes.

A folder is complete when it has ``_SUCCESS``, which its writer adds last. Contents are not interpreted here.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from churn.data.file_kinds import is_part
from churn.errors import InputError, SourceError, TransientError
from churn.storage.places import Entry

# A variant's input is the first of these in its data folder; the format is detected from the content.
INPUT_FOLDER = "data/churn/"
INPUT_NAMES = ("activity.parquet", "activity.csv", "activity.jsonl", "activity.json", "X_test_sample_2.json")
INPUT_KEYS = [INPUT_FOLDER + name for name in INPUT_NAMES]
PACKED = ("", ".gz", ".zst")
PARTS_VERSION = "parts-"
_SUCCESS = "_SUCCESS"
_ACTIVITY = re.compile(r"(?i)(?!.*\.(md|html|pdf|sql)$)([^/]*[^a-z/])?activity(?![a-z])|([^/]+=[^/]*/)*part-\d")


def sample_beside(uri: str) -> str:
    """Return the URI of the sample in the folder of an input.

    >>> sample_beside("s3://b/geography-us/data/churn/activity.parquet.gz@a/b")
    's3://b/geography-us/data/churn/X_test_sample_2.json'
    """
    return "".join((*uri.partition(INPUT_FOLDER)[:2], INPUT_NAMES[-1]))


def is_sample(uri: str) -> bool:
    """Return whether an input, or an input's version, is the sample: encoded rows that may be all a variant has."""
    return uri.startswith(sample_beside(uri))


class UnfinishedError(SourceError, TransientError):
    """A folder of parts is being written; no local copy takes its place."""


@dataclass(frozen=True)
class Found:
    """A file in a listing, or a folder of parts, without its last slash; ``version`` changes when the content does."""

    key: str
    entries: tuple[Entry, ...]
    version: str


def find(entries: Mapping[str, Entry], prefix: str, keys: Sequence[str]) -> Found | None:
    """Return the first of some files that a listing has; an input in any of its forms.

    Raises ``UnfinishedError`` if it is a folder of parts without ``_SUCCESS``, and ``InputError`` if only the sample is
    left, and beside it is activity in a form that is not read.
    """
    for key in keys:
        forms = PACKED if key in INPUT_KEYS else PACKED[:1]
        if len(keys) > 1 and key == INPUT_KEYS[-1]:
            _require_no_other_activity(entries, prefix)
        for form in forms:
            if entry := entries.get(prefix + key + form):
                return Found(entry.key, (entry,), entry.version)
        if len(forms) > 1 and (folder := find_folder(entries, prefix + key)):
            return folder
    return None


def find_folder(entries: Mapping[str, Entry], key: str) -> Found | None:
    """Return a folder of parts; ``None`` if a listing has nothing in it."""
    names = {name.removeprefix(f"{key}/"): entry for name, entry in entries.items() if name.startswith(f"{key}/")}
    names.pop("", None)  # a folder that was made by hand in the console
    if not names:
        return None
    parts = tuple(names[name] for name in sorted(names) if is_part(name))
    if _SUCCESS not in names or not parts:
        found = f"{len(parts)} parts and {'no' if _SUCCESS not in names else 'a'} {_SUCCESS}"
        remedy = f"wait for it, or add an empty {_SUCCESS} if it writes none"
        raise UnfinishedError(f"the folder {key}/ has {found}, so its writer is at work or was interrupted; {remedy}")
    sha256 = hashlib.sha256("\n".join(f"{part.key}@{part.version}" for part in parts).encode())
    return Found(key, parts, f"{PARTS_VERSION}{sha256.hexdigest()[:32]}")


def _require_no_other_activity(entries: Mapping[str, Entry], prefix: str) -> None:
    folder = prefix + INPUT_FOLDER
    others = [key for key in entries if key.startswith(folder) and _ACTIVITY.match(key, len(folder))]
    if others:
        problem = f"{others[0]} looks like the variant's activity, and its name is not one that is read"
        remedy = f"rename it to one of {', '.join(INPUT_NAMES[:-1])}, perhaps with .gz or .zst"
        raise InputError(f"{problem}; {remedy}. The sample beside it does not take its place")
