"""At stake: a command works, or ends in one line, whatever machine it runs on."""

# ruff: noqa: RUF001

# Letters that look like others are what some inputs are for.

import errno
import io
import logging
import os
import subprocess
import sys
import time
from datetime import date

import pytest

from churn.cli.main import build_parser
from churn.deployment import command_line
from churn.deployment.command_line import describe_os_error, run_command, show
from churn.deployment.settings import misspelled
from churn.deployment.surroundings import prepare_process
from churn.variants import Variant
from churn.versions import package_version
from churn.workflows.fleet import for_each_variant

SHOWN = {
    "é": "e", "…": "...", "–": "-", "→": "->", "│": "|", "─": "-", "┼": "+", "┌": "+", "═": "-", "║": "|", "≥": ">=",
    "×": "x", "’": "'", "ü": "u", "日": "?", "•": "*", "½": "1/2", "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_a_console_that_cannot_show_a_letter_gets_ascii(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    prepare_process()
    print("".join(SHOWN), flush=True)
    shown = raw.getvalue().decode(encoding).rstrip()
    expected = "".join(letter if letter.encode(encoding, "ignore") else SHOWN[letter] for letter in SHOWN)
    assert shown == expected.rstrip()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("before", ["", "intranet", "localhost,intranet"])
def test_loopback_never_goes_through_a_proxy(name, before, monkeypatch):
    for other in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(other, raising=False)
        monkeypatch.delenv(other.upper(), raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", before)
    monkeypatch.setenv("NO_PROXY", before)

    prepare_process()

    for excepted in ("no_proxy", "NO_PROXY"):
        hosts = os.environ[excepted].split(",")
        assert {"localhost", "127.0.0.1", "::1"} <= set(hosts)
        assert len(hosts) == len(set(hosts))
        assert before.split(",")[-1] in (*hosts, "")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "set TMPDIR"), (errno.EDQUOT, "quota"), (errno.EACCES, "give this user the right"),
        (errno.EROFS, "mounted read-only"), (errno.EMFILE, "ulimit -n"), (errno.ENOMEM, "more memory"),
        (errno.EIO, "correct that"), (errno.ENOENT, "correct that"), (errno.ENOTDIR, "correct that"),
        (errno.EISDIR, "correct that"), (errno.ENAMETOOLONG, "correct that"), (errno.ELOOP, "correct that"),
        (errno.ESTALE, "correct that"), (errno.EBUSY, "correct that"), (errno.EPERM, "give this user the right"),
        (errno.ENFILE, "ulimit -n"), (errno.EFBIG, "correct that"), (errno.EADDRINUSE, "correct that"),
    ],
)  # fmt: skip
def test_an_error_of_the_operating_system_is_one_line(code, said, capsys):
    def fail() -> None:
        raise OSError(code, os.strerror(code), "/somewhere")

    with pytest.raises(SystemExit) as end:
        run_command("churn", fail)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"churn: the operating system refused the use of /somewhere: {os.strerror(code)}; ")
    assert said in line


def test_an_error_without_a_number_is_described():
    assert "refused the use: no luck; correct that" in describe_os_error(OSError("no luck"))


@pytest.mark.parametrize(
    ("name", "level", "n_lines"),
    [
        ("sqlalchemy.pool.impl.QueuePool", "warning", 1),
        ("botocore.retries", "info", 1),
        ("dagster.daemon", "debug", 6),
        ("churn.workflows.fleet", "warning", 6),  # ours is no error that was expected
    ],
)
def test_tracebacks_of_other_libraries_are_one_line_unless_at_debug(name, level, n_lines, capsys, monkeypatch):
    monkeypatch.setenv("CHURN_LOG_LEVEL", level)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def log() -> None:
        try:
            raise ConnectionError("the server closed\nthe connection")
        except ConnectionError:
            logging.getLogger(name).exception("Exception terminating connection")

    run_command("churn", log)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == n_lines, lines
    assert "ConnectionError: the server closed" in lines[min(n_lines - 1, 4)]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_command_says_what_it_does_every_few_seconds_in_a_terminal(is_terminal, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_SHOWN_EVERY_S", 0.02)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    after: list[str] = []

    def work() -> None:
        list(for_each_variant(lambda _: time.sleep(0.1), ["geography-us"]))
        after.extend(capsys.readouterr().err.splitlines())

    run_command("train_model.py", work)
    assert {line.partition(" … ")[0] for line in after} == (
        {"train_model.py: at work on geography-us"} if is_terminal else set()
    )


def test_machines_get_json_and_people_lines(capsys):
    show({"day": date(2026, 11, 30), "variants": [Variant("US")]}, [], as_json=True)
    show({}, ["geography-us: fine\x1b[2J"], as_json=False)
    assert capsys.readouterr().out == (
        '{"day": "2026-11-30", "variants": ["geography-us"]}\ngeography-us: fine\\x1b[2J\n'
    )


def test_every_argument_of_every_command_is_described(capsys):
    def actions(parser):
        return parser._actions  # noqa: SLF001 there is no public way to ask

    def parsers(parser):
        yield parser
        for action in actions(parser):
            for one in action.choices.values() if isinstance(action.choices, dict) else ():
                yield from parsers(one)

    all_of_them = list(parsers(build_parser()))
    assert len(all_of_them) > 20
    for parser in all_of_them:
        assert parser.description, parser.prog
        undescribed = [one.dest for one in actions(parser) if not one.help and not isinstance(one.choices, dict)]
        assert undescribed == [], parser.prog
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--version"])
    assert capsys.readouterr().out == f"churn {package_version()}\n"


def test_a_reader_that_ends_early_is_no_traceback():
    code = (
        "from churn.deployment.command_line import run_command\n"
        "run_command('churn', lambda: [print('x' * 100, flush=True) for _ in range(100_000)])"
    )
    command = f'{sys.executable} -c "{code}" | head -1'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("x" * 100 + "\n", "")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CHURN_ALERT_URL", "CHURN_ALERT_URLS"), ("CHURN_LOCALFALLBACK", "CHURN_LOCAL_FALLBACK"),
        ("CHURN_ALERTURLS", "CHURN_ALERT_URLS"), ("CHURN_LOCAL_FALBACK", "CHURN_LOCAL_FALLBACK"),
        ("CHURN_MAX_QUARANTINE", "CHURN_MAX_QUARANTINE_SHARE"), ("CHURN_DATABASE_URI", "CHURN_DATABASE_URL"),
        ("CHURN_DATABASEURL", "CHURN_DATABASE_URL"), ("CHURN_HOMES", "CHURN_HOME"), ("CHURN_MINAUC", "CHURN_MIN_AUC"),
        ("CHURN_AUTOPROMOTE", "CHURN_AUTO_PROMOTE"), ("CHURN_KEEP_WEEK", "CHURN_KEEP_WEEKS"),
        ("MLFLOW_S3_BUCKETS", "MLFLOW_S3_BUCKET"), ("MLFLOW_SECRET_NAMES", "MLFLOW_SECRET_NAME"),
        ("MLFLOW_SECRETNAME", "MLFLOW_SECRET_NAME"), ("MLFLOW_DBHOST", "MLFLOW_DB_HOST"),
        ("MLFLOW_TRACKING_URL", "MLFLOW_TRACKING_URI"), ("churn_alert_url", "CHURN_ALERT_URLS"),
    ],
)  # fmt: skip
def test_a_name_close_to_a_setting_is_reported_with_the_one_meant(name, meant):
    assert misspelled([name]) == {name: meant}


def test_names_of_others_are_left_alone():
    import mlflow.environment_variables as theirs

    names = [value.name for value in vars(theirs).values() if isinstance(getattr(value, "name", 0), str)]
    assert len(names) > 100
    assert (
        misspelled(
            [*names, "CHURN_SOMETHING_ELSE", "PATH", "CHURN_HOME", "CHURN_DAGSTER_DATABASE_URL", "MLFLOW_DB_HOST"]
        )
        == {}
    )
