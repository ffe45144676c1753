"""What all command lines share: variant flags, and errors told as one line with the right exit status."""

import argparse
import logging
import re
import sys
from collections.abc import Callable

from churn.errors import ChurnError, UsageError
from churn.variants import Variant

FAILED, WRONG_USAGE = 1, 2
_ALIAS = re.compile(r"(?!(?:latest|v[0-9]+)\Z)[a-z0-9_-]{1,255}", re.IGNORECASE)


def add_variant_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--geography`` and ``--company``; neither means the base variant."""
    parser.add_argument("--geography", help="such as US; case does not matter")
    parser.add_argument("--company", help="such as ClientA; case does not matter")


def run_command(name: str, command: Callable[[], None]) -> None:
    """Run a command; on an error raised on purpose print its one line and exit, 2 for wrong usage, else 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        command()
    except ChurnError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(WRONG_USAGE if isinstance(error, UsageError) else FAILED)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run it again to go on", file=sys.stderr)
        sys.exit(130)


def variant_of(args: argparse.Namespace) -> Variant:
    """Read the variant flags.

    Raises:
        UsageError: If a part is not allowed.
    """
    return Variant(args.geography, args.company)


def alias_of(args: argparse.Namespace) -> str | None:
    """Read the flag ``--alias``.

    Raises:
        UsageError: If MLflow would refuse it, which it does only when the version is registered.
    """
    alias: str | None = args.alias
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"alias {alias!r} is not allowed: letters, digits, - and _, at most 255, and neither latest nor a version "
            f"such as v3; champion is the one that scores"
        )
    return alias
