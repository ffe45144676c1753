"""Work done in threads, in order and never far ahead. Polars, Arrow, XGBoost and drivers leave the interpreter free."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

_In = TypeVar("_In")
_Out = TypeVar("_Out")

CORES = 2


def in_threads(work: Callable[[_In], _Out], items: Iterable[_In], threads: int = CORES) -> Iterator[_Out]:
    """Map in order on a few threads, no more than that many items ahead of what is taken."""
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[_Out]] = deque()
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def ahead(items: Iterable[_Out], most: int = 4) -> Iterator[_Out]:
    """Make items in one thread while earlier ones are used, at most ``most`` ahead; an error comes where it is due."""
    iterator = iter(items)
    pool = ThreadPoolExecutor(1)

    def make() -> tuple[bool, _Out | None]:
        for item in iterator:
            return True, item
        return False, None

    try:
        begun = deque(pool.submit(make) for _ in range(most))
        while (made := begun.popleft().result())[0]:
            begun.append(pool.submit(make))
            yield cast("_Out", made[1])
    finally:
        pool.shutdown(cancel_futures=True)
