"""Compiling numeric loops with Numba. Modules that use it import it late or are imported late: it takes a second."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile a function on its first call, and cache the machine code next to the module or in the user's cache.

    If neither is writable, every process compiles again.
    """
    try:
        return cast("_Function", numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # Numba has nowhere to cache it
        return cast("_Function", numba.njit(nogil=True)(function))
