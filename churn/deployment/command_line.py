"""The common part of the command lines: variant flags, output, progress, exit status, errors as one line."""

import argparse
import copy
import errno
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from churn.deployment.surroundings import prepare_process
from churn.errors import ChurnError, UsageError, raised_as
from churn.signals import Stopped, signals_handled
from churn.variants import Variant, find_variant, fold_name
from churn.versions import CHALLENGER, CHAMPION, PREVIOUS
from churn.wording import plain, printable

if TYPE_CHECKING:
    from churn.storage.sources import Sources

FAILED, WRONG_USAGE = 1, 2
_MAX_KEYS_TEXT = 10_000_000  # a device file has no end
_SHOWN_EVERY_S, _LOGGED_EVERY_S = 5, 60
_OURS = ("churn", "orchestration", "experiment_tracking")

logger, _OURS_ROOT = logging.getLogger(__name__), logging.getLogger("churn")
_ALIAS = re.compile(r"(?!(?:latest|v[0-9]+)\Z)[a-z0-9_-]{1,255}", re.IGNORECASE | re.ASCII)


class Parser(argparse.ArgumentParser):
    """Refuses an unknown flag with the usage of the command that it was given to, and the flag that is near."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = re.findall(r"--[a-z-]+", self.format_usage())
            near = [close[0] for word in unknown if (close := get_close_matches(word.partition("=")[0], flags, 1))]
            hint = f"; did you mean {' '.join(near)}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


def add_command(commands: Any, name: str, text: str, *, has_json: bool = False) -> Parser:
    """Add a command with its one sentence, which its own help begins with; ``has_json`` adds ``--json``."""
    parser: Parser = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
    if has_json:
        parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    return parser


def add_variant_flags(parser: argparse.ArgumentParser, which: str = "that has a model file") -> None:
    """Add the flags that name one variant or many; without any, the base variant is meant."""
    parser.add_argument("--geography", help="such as US; case does not matter")
    parser.add_argument("--company", help="such as ClientA; case does not matter")
    keys = "a key such as geography-us, or us if one registered variant has that name; may be repeated"
    parser.add_argument("--variant", action="append", default=[], metavar="KEY", help=keys)
    parser.add_argument("--all", type=Path, metavar="FILE", help="a file with a variant key on each line")
    under = f"every variant {which} under this prefix of the bucket, such as geography-"
    parser.add_argument("--under", metavar="PREFIX", help=under)


class _OneLine(logging.Formatter):
    """Formats messages as lines that cannot steer a terminal, whatever name of a file or column they hold.

    An error that another library logs, mostly while something is tried again, is one line, unless we are at debug.
    """

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info and record.exc_info[1]
        if error and not record.name.startswith(_OURS) and not _OURS_ROOT.isEnabledFor(logging.DEBUG):
            record = copy.copy(record)
            record.msg, record.args = f"{record.name}: {record.getMessage()} ({type(error).__name__}: {error})", ()
            record.exc_info = record.exc_text = None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 logging's name
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


def say(*lines: str, is_error: bool = False) -> None:
    """Print lines that cannot steer a terminal, whatever name of a file, column or receiver they hold."""
    for line in lines:
        print(printable(line), file=sys.stderr if is_error else sys.stdout, flush=True)


def show(found: object, lines: Iterable[str], *, as_json: bool) -> None:
    """Print what was found: lines for people, or one line of JSON for machines, with times in ISO 8601."""
    say(*([json.dumps(plain(found))] if as_json else lines))


class _Latest(logging.Handler):
    """Keeps the last message, such as that of a step that begins."""

    text = "starting"

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


@contextmanager
def _progress(name: str) -> Iterator[None]:
    """Print the last message of level INFO and the elapsed time every few seconds; in a log, every minute."""
    latest, ended, started, level = _Latest(logging.INFO), threading.Event(), time.monotonic(), _OURS_ROOT.level

    def report() -> None:
        while not ended.wait(_SHOWN_EVERY_S if sys.stderr.isatty() else _LOGGED_EVERY_S):
            say(f"{name}: {latest.text} … {time.monotonic() - started:.0f} s", is_error=True)

    _OURS_ROOT.addHandler(latest)
    _OURS_ROOT.setLevel(min(_OURS_ROOT.getEffectiveLevel(), logging.INFO))
    threading.Thread(target=report, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        _OURS_ROOT.removeHandler(latest)
        _OURS_ROOT.setLevel(level)


def run_command(name: str, command: Callable[[], None], *, waits: bool = False, is_silent: bool = True) -> None:
    """Run a command; print an error raised on purpose as one line and exit, with 2 for wrong usage, else 1.

    With ``waits`` it serves until ``churn.signals.stop_request`` is set. ``is_silent``: it shows no progress itself.
    """
    prepare_process()
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # its messages are formatted as all others
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        with signals_handled(waits=waits):
            from churn.deployment.settings import load_settings  # slow to import

            handler.setLevel(level := load_settings().churn_log_level.upper())
            _OURS_ROOT.setLevel(level)
            with _progress(name) if is_silent and not waits else nullcontext():
                command()
    except ChurnError as error:
        say(f"{name}: {error}", is_error=True)
        sys.exit(WRONG_USAGE if isinstance(error, UsageError) else FAILED)
    except BrokenPipeError:
        # Who reads the output has ended, as head does; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        say(f"{name}: {describe_os_error(error)}", is_error=True)
        sys.exit(FAILED)
    except Stopped:
        print(f"{name}: stopped before it was ready", file=sys.stderr)
    except KeyboardInterrupt:
        told = "stopped at once, by a second signal" if waits else "interrupted; run it again to continue"
        print(f"{name}: {told}", file=sys.stderr)
        sys.exit(130)


def describe_os_error(error: OSError) -> str:
    """Return an error of the operating system as one line, with the file and the next step."""
    where = f" of {error.filename}" if error.filename else ""
    text = error.strerror or str(error) or type(error).__name__
    remedies = {
        errno.ENOSPC: f"free space there, or set TMPDIR (now {tempfile.gettempdir()}) or CHURN_HOME to another disk",
        errno.EDQUOT: "the quota of this user is used up: free space, or set TMPDIR or CHURN_HOME to another disk",
        **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user the right to it, or set another path"),
        errno.EROFS: "the disk is mounted read-only: set TMPDIR and CHURN_HOME to one that is not",
        **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
        errno.ENOMEM: "give this process more memory, or score fewer variants at once",
    }
    remedy = remedies.get(error.errno or 0, "correct that, and run it again")
    return f"the operating system refused the use{where}: {text}; {remedy}"


def print_attempts(
    name: str, attempts: Iterable[tuple[str, Sequence[str] | BaseException]], n_all: int | None = None
) -> None:
    """Print each variant's lines or error as it ends, and list those of many that failed; ``n_all`` are begun.

    Exits with 1 if one failed, and with 2 if none failed for another reason than a name that cannot be meant.
    """
    from churn.workflows.fleet import error_text  # imports Polars

    failed, n_variants, status = [], 0, WRONG_USAGE
    for key, result in attempts:
        n_variants += 1
        if isinstance(result, BaseException):
            failed.append(key)
            status = status if isinstance(result, UsageError) else FAILED
            say(f"{name}: {_of_variant(key, error_text(result))}", is_error=True)
        else:
            say(*(result or [f"{key}: nothing is due"]))
        of = f"{n_variants:,}" if n_all is None else f"{n_variants:,} of {n_all:,}"
        logger.info("%s variants done, %d failed", of, len(failed))
    if failed:
        if n_variants > 1:
            say(f"{name}: {len(failed)} of {n_variants} failed: {', '.join(failed)}", is_error=True)
        sys.exit(status)


def _of_variant(key: str, text: str) -> str:
    """Return a variant's error with its key, which many of them name themselves.

    >>> _of_variant("base", "base has no challenger"), _of_variant("base", "database/ is empty")
    ('base has no challenger', 'base: database/ is empty')
    """
    return text if re.search(rf"(?<![\w./-]){re.escape(key)}(?![\w./-])", text) else f"{key}: {text}"


def parse_variants(args: argparse.Namespace) -> list[str]:
    """Return the names of the variants that the flags name, each once, in order; call it before a service is opened.

    Raises ``UsageError`` if a name is not allowed, or the file of ``--all`` cannot be read.
    """
    many = [fold_name(name) for name in [*args.variant, *_read_keys(args.all)]]
    is_one = bool(args.geography or args.company) or not (many or args.under is not None)
    return list(dict.fromkeys([*([Variant(args.geography, args.company).key] if is_one else []), *many]))


def find_variants(
    names: Sequence[str], args: argparse.Namespace, known: Callable[[], Iterable[Variant]], *places: "Sources | None"
) -> list[Variant]:
    """Return the variants of these names and of ``--under``; raises ``UsageError`` where there is none.

    ``--under`` searches model files in ``places``, and in place of ``None`` the registered variants, ``known``.
    """
    found, under = [find_variant(name, known) for name in names], []
    for place in places if args.under is not None else ():
        there = known() if place is None else place.variants_under(args.under)
        under += [one for one in there if place or one.prefix.startswith(args.under.casefold())]
    if args.under is not None and not under:
        of = " or ".join("no registered variant" if place is None else "no model file of a variant" for place in places)
        raise UsageError(f"--under {args.under!r} finds {of}; a key prefix such as geography- is needed")
    return list(dict.fromkeys([*found, *under]))


def typed_parts(args: argparse.Namespace) -> dict[str, str]:
    """Return --geography and --company as they are typed, by the tag of a run; they name the first variant."""
    return {name: part for name, part in {"geography": args.geography, "company_id": args.company}.items() if part}


def is_fleet(args: argparse.Namespace) -> bool:
    """Return whether the flags name a fleet, of which variants that are done already are skipped."""
    return args.all is not None or args.under is not None


def parse_day(text: str) -> date:
    """Parse a day, for argparse."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day; YYYY-MM-DD is needed") from None


def parse_port(text: str) -> int:
    """Parse a port, for argparse."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; a number from 1 to 65535 is needed")
    return int(text)


def parse_account(text: str) -> str:
    """Parse an account's id, a number or a text, for argparse."""
    from churn.data.account_ids import read_id

    try:
        return read_id(text)[1]
    except ValueError:
        needed = "a whole number, or a text of at most 256 bytes that is no other number"
        raise argparse.ArgumentTypeError(f"{text!r} is not an account_id; {needed} is needed") from None


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    needed = "a text file with a variant key on each line is needed"
    with raised_as(UsageError, f"--all {path} cannot be read", OSError, ValueError, remedy=needed):
        with path.open() as file:
            text = file.read(_MAX_KEYS_TEXT + 1)
        if len(text) > _MAX_KEYS_TEXT:
            raise ValueError(f"it is longer than {_MAX_KEYS_TEXT} characters")
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise UsageError(f"--all {path} names no variant; {needed}")
    return keys


def parse_alias(args: argparse.Namespace) -> str | None:
    """Return the value of ``--alias``; raises ``UsageError`` if MLflow would reject it at registration."""
    alias: str | None = args.alias
    if alias is not None and not _ALIAS.fullmatch(alias):
        needed = "letters, digits, - and _, at most 255, and neither latest nor a version such as v3"
        raise UsageError(f"alias {alias!r} is not allowed: {needed}; champion is the one that scores")
    known = (CHAMPION, CHALLENGER, PREVIOUS)
    if alias is not None and alias not in known and (meant := get_close_matches(alias.lower(), known, 1)):
        raise UsageError(f"alias {alias!r} is not {meant[0]}, and close to it; name that, or one that differs more")
    return alias
