"""Work done in threads, in order and never far ahead. Polars, Arrow, XGBoost and drivers leave the interpreter free."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")

CORES = 2


def without_frames(error: BaseException) -> BaseException:
    """Let go of the frames that an error came through, which hold a variant's model and rows."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


def in_threads(work: Callable[[_In], _Out], items: Iterable[_In], threads: int = CORES) -> Iterator[_Out]:
    """Map in order on a few threads, no more than that many items ahead of what is taken."""
    if isinstance(items, Sized) and len(items) == 1:  # starting a thread for it takes longer than small work does
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[_Out]] = deque()
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
