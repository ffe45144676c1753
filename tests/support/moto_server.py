"""moto, whose listing of versions copies no objects: run this file as ``moto.server``, or import the server from here.

moto copies every object of a bucket, with its content, whenever versions are listed, and never frees a copy. A server
that lived through the matrix's kills grew to 16.7 GB, and the system killed it.
"""

from typing import Any

from moto.s3.models import FakeKey
from moto.server import ThreadedMotoServer, main

__all__ = ["ThreadedMotoServer"]


def _itself(key: FakeKey, _memo: dict[int, Any]) -> FakeKey:
    """Return the object instead of a copy: a listing only sets whether it is the newest version, each time."""
    return key


FakeKey.__deepcopy__ = _itself  # type: ignore[attr-defined]

if __name__ == "__main__":
    main()
