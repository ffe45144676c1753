"""What a process finds around it and puts right for itself: proxies, and consoles that cannot show a character."""

import codecs
import os
import sys
import unicodedata

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_ASCII = {"\u2026": "...", "\u2013": "-", "\u2014": "-", "\u2192": "->", "\u2190": "<-", "\u00d7": "x"}
_ASCII |= {"\u2265": ">=", "\u2264": "<=", "\u2022": "*", "\u2019": "'", "\u00bd": "1/2"}


def prepare_process() -> None:
    """Exempt loopback from proxies, here and in child processes, and write ASCII to consoles that need it."""
    if any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        for name in ("no_proxy", "NO_PROXY"):
            hosts = [host for host in os.environ.get(name, "").split(",") if host.strip()]
            os.environ[name] = ",".join(dict.fromkeys([*hosts, *_LOOPBACK]))
    codecs.register_error("churn_ascii", _as_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook replaced it
            stream.reconfigure(errors="churn_ascii")


def _as_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letter, error.object[error.start : error.end])), error.end


def _letter(letter: str) -> str:
    """Return what stands for a letter in ASCII.

    >>> "".join(map(_letter, "é → │┼"))
    'e -> |+'
    """
    if letter.isascii():
        return letter
    if 0x2500 <= ord(letter) <= 0x257F:  # lines and corners of tables
        name = unicodedata.name(letter)
        is_line = "AND" not in name
        return "-" if is_line and "HORIZONTAL" in name else "|" if is_line and "VERTICAL" in name else "+"
    return _ASCII.get(letter) or unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"
