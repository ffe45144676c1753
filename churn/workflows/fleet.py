"""The loop over many variants, which goes on if one fails. Every workflow over a fleet uses it."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import polars as pl

from churn.concurrency import in_threads, without_frames
from churn.errors import ChurnError
from churn.variants import Variant

logger = logging.getLogger(__name__)

_Out = TypeVar("_Out")

Work = Callable[[Variant], _Out]
Attempts = Iterator[tuple[str, _Out | BaseException]]
"""Each variant's key with the result of its work, or the error."""
FleetEngine = Callable[[Callable[[str], "_Out | BaseException"], Sequence[str]], Attempts[_Out]]
"""Runs the work somewhere: calls the function with each key, and yields each key with the function's result."""


def for_each_variant(
    work: Work[_Out], keys: Sequence[str], engine: FleetEngine[_Out] | None = None, n_threads: int | None = None
) -> Attempts[_Out]:
    """Do some work for many variants, several at once; one that fails stops no other.

    Yields each key with the result of ``work`` or the error; an invalid key is an error like any other. By default
    threads of this process work, which keep the order of ``keys``. For an engine of other processes, ``work`` and its
    result must be picklable.
    """
    attempt = partial(_attempt, work)
    yield from engine(attempt, keys) if engine else in_threads(lambda key: (key, attempt(key)), keys, n_threads)


def _attempt(work: Work[_Out], key: str) -> _Out | BaseException:
    logger.info("at work on %s", key)  # commands show it as their progress
    try:
        return work(Variant.from_key(key))
    except (Exception, pl.exceptions.PanicException) as error:  # Polars' panics are no Exception
        if not isinstance(error, ChurnError):
            logger.exception("%s failed", key)
        return without_frames(error)


def run_attempt(attempt: Callable[[str], Any], key: str) -> Any:
    """Attempt a variant in another process; errors that are not ours may not be picklable, and are described."""
    result = attempt(key)
    if isinstance(result, BaseException) and not isinstance(result, ChurnError):
        return RuntimeError(f"{type(result).__name__}: {result}")
    return result


def results_of(attempts: Attempts[_Out]) -> dict[str, _Out]:
    """Return the result of each variant; raises the first error once all are done."""
    done = dict(attempts)
    for result in done.values():
        if isinstance(result, BaseException):
            raise result
    return cast("dict[str, _Out]", done)


def error_text(error: BaseException) -> str:
    """Return the text that people see of a variant's error: the message of a ``ChurnError``, the repr of any other."""
    return str(error) if isinstance(error, ChurnError) else repr(error)
