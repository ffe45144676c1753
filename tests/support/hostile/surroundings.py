"""The environment, secrets and database URLs."""

# ruff: noqa: E501, RUF001

# Inputs are tables, and letters that look like others are what some of them are for.

import contextlib
import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from churn.database.connection import parse_database_url, require_connection
from churn.deployment.credentials import parse_secret
from churn.deployment.settings import Settings, load_settings
from churn.errors import ChurnError, UsageError
from tests.support.hostile import corpus
from tests.support.hostile.documents import mutate_document
from tests.support.hostile.harness import SAME, require, require_clear
from tests.support.hostile.words import hostile_text

SECRET = "hunter2-s3cr3t"  # noqa: S105
NOWHERE = {
    "MLFLOW_TRACKING_URI": "postgresql://u:p@127.0.0.1:1/m",
    "CHURN_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/c",
}
VALUES = [
    "", " ", "x", "-1", "0", "1", "1e999", "nan", "inf", "-inf", "1_000", "0x10", "１２", "9" * 400, "9" * 5000, "true", "maybe", "P7D", "P1Y",
    "PT1e99S", "P9999999999D", "999999999999999", "86400", "7 days", "-P7D", "1.5", "65536", "99999999999999999999", "[]", "{}", "null",
    '"', "'", "\n", "a\nb", "\x1b[31m", "\ud800", "\udcff", "é", "postgresql://", "://", "$HOME", "~", "/dev/null", "file:///etc/passwd", "a" * 100_000,
]  # fmt: skip


def judge_settings(payload: object, folder: Path) -> str:
    """Read settings from a hostile environment; a wrong one is named, and no secret repeated."""
    assert isinstance(payload, dict)
    with environment({name: sendable(value) for name, value in payload.items()}):
        try:
            settings = load_settings()
        except UsageError as error:
            require(SECRET not in str(error), "a secret is in the message")
            raise
    require(SECRET not in repr(settings), "a secret is in what it shows of itself")
    require(0 <= settings.churn_max_quarantine_share <= 1 and 0 < settings.mlflow_db_port < 65536, "out of bounds")
    require(0.5 <= settings.churn_min_auc < 1, "out of bounds")
    return SAME


def sendable(text: str) -> str:
    """Take away what neither an environment nor a command line can hold."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Any:
    held = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "CHURN_"))]:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(held)


def mutate_settings(chance: random.Random) -> dict[str, str]:
    names = chance.sample(sorted(Settings.model_fields), chance.randint(1, 4))
    values = {name.upper(): hostile_text(chance, VALUES) for name in names}
    for name in ("CHURN_DATABASE_URL", "CHURN_ALERT_URLS", "MLFLOW_TRACKING_URI"):
        if name in values:
            values[name] += SECRET
    return values


def judge_secret(payload: object, folder: Path) -> str:
    assert isinstance(payload, str)
    with environment({}):
        settings = load_settings()
    try:
        url = parse_secret(payload, "the-secret", settings)
    except ChurnError as error:
        require(SECRET not in str(error), "the password is in the message")
        raise
    held = json.loads(payload)
    require((url.username, url.password) == (held["username"], held["password"]), "other credentials")
    _try_to_connect(url.set(host="127.0.0.1", port=1))
    return SAME


def _try_to_connect(url: Any) -> None:
    try:
        require_connection(url)
    except ChurnError as error:
        require_clear(str(error))
        require(SECRET not in str(error), "the password is in the message")


SECRET_SEED = {"username": "scorer", "password": SECRET, "host": "db.internal", "port": 6543, "dbname": "tracking"}
SECRETS: Mapping[str, Callable[[], object]] = {
    name: (lambda make=make: make().decode("utf-8", "surrogateescape")) for name, make in corpus.GARBAGE.items() if not any(large in name for large in ("MB", "bomb", ",000,000"))
} | {
    f"{key} is {value!r:.20}": (lambda key=key, value=value: json.dumps(SECRET_SEED | {key: value}))
    for key in SECRET_SEED
    for value in (None, "", 0, -1, 1.5, True, [], {}, [SECRET], "a\0b", "\ud800", "a\nb", "x" * 100_000, "９", 65536, 1e999, " ", "a b", "'", "%00", "@/:?#")
}  # fmt: skip


def mutate_secret(chance: random.Random) -> str:
    text = json.dumps(SECRET_SEED)
    if chance.randrange(2):
        return corpus.damage(text.encode(), chance).decode("utf-8", "surrogateescape")
    return json.dumps(mutate_document(SECRET_SEED, chance))


URLS = [
    "", "x", "postgresql", "postgresql:", "postgresql://", "postgresql:///", "postgresql:///db", "postgresql://h", "postgresql://h:x/db",
    "postgresql://h:99999/db", "postgresql://h:-1/db", "postgresql://u:p@h:5432/", "postgresql://[::1]:5432/db", "postgresql://[::1/db",
    "mysql://u:p@h/db", "sqlite:///x.db", "postgresql+asyncpg://u:p@h/db", "postgresql+nothing://u:p@h/db", "postgres://u:p@h/db",
    "postgresql://u:%00@h/db", "postgresql://u%00:p@h/db", "postgresql://u:p@h/db%00", "postgresql://u:%ff@h/db", "postgresql://u:p@h/db?sslmode=x",
    "postgresql://u:p@h/db?port=1&host=x", "postgresql://u:p@h/db?connect_timeout=x", "postgresql://u:p@h/db?nothing=1", "postgresql://u:p@h/d b",
    "postgresql://u:p@h/db?options=-c%20role%3Dx", "postgresql://u:p@@h/db", "postgresql://u:p/w@h/db", "postgresql://h:5432:5432/db",
    "postgresql://u:p@h:1e3/db", "postgresql://u:p@h:５４３２/db", "postgresql://u:p@h:" + "9" * 5000 + "/db", "postgresql://u:p@h/" + "d" * 100_000,
    "http://h/db", "jdbc:postgresql://h/db", "host=h dbname=d", "postgresql://u:p@h/db#x", "postgresql://u:p@/db", "POSTGRESQL://u:p@h/db",
    "postgresql://u:p@h/db?service=x", "postgresql://u:p@h/db?passfile=/etc/passwd", "postgresql://é:é@é/é",
]  # fmt: skip


def judge_url(payload: object, folder: Path) -> str:
    assert isinstance(payload, str)
    text = payload.replace(":p@", f":{SECRET}@")
    try:
        url = parse_database_url(text, "CHURN_DATABASE_URL")
    except UsageError as error:
        require(SECRET not in str(error), "the password is in the message")
        raise
    require(url.get_backend_name() == "postgresql" and bool(url.database), "another kind of database")
    require(SECRET not in repr(url) or text.count(SECRET) > 1, "the password is in what it shows of itself")
    if url.password == SECRET and text.count(SECRET) == 1:
        _try_to_connect(url.set(host="127.0.0.1", port=1))
    return SAME
