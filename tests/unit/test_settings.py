"""At stake: a wrong setting is told by its name before anything is done, and no password reaches a message or a log."""

import json
import re
import traceback
import uuid
from datetime import timedelta
from pathlib import Path

import boto3
import pytest
import sqlalchemy as sa

from churn.database.connection import parse_database_url
from churn.deployment.credentials import read_secret
from churn.deployment.services import open_deployment
from churn.deployment.settings import Settings, load_settings
from churn.errors import CredentialsError, SecretsUnavailableError, UsageError

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = """p@ss:w/o%rd'"s x"""  # noqa: S105
EXAMPLE = (ROOT / ".env.example").read_text()


@pytest.fixture(autouse=True)
def no_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture
def secret(aws: str, monkeypatch: pytest.MonkeyPatch):
    """Store a value as the secret that is configured."""

    def store(value: object) -> str:
        name = f"churn-{uuid.uuid4().hex[:12]}"
        text = value if isinstance(value, str) else json.dumps(value)
        boto3.client("secretsmanager").create_secret(Name=name, SecretString=text)
        monkeypatch.setenv("MLFLOW_SECRET_NAME", name)
        return name

    return store


def test_env_example_lists_exactly_the_variables_that_are_read():
    names = [line.partition("=")[0] for line in EXAMPLE.splitlines() if "=" in line and not line.startswith("#")]
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_env_example_describes_each_variable_and_its_default(name):
    field = Settings.model_fields[name]
    described = re.search(rf"^# (.*)\n{name.upper()}=$", EXAMPLE, re.MULTILINE)
    assert described
    assert described.group(1).startswith(field.description)
    if field.default is not None and field.default_factory is None:
        assert described.group(1).endswith(f" Default: {field.default}")


def test_env_example_copied_as_it_is_sets_nothing(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text(EXAMPLE)
    monkeypatch.delenv("CHURN_HOME")
    assert Settings(_env_file=tmp_path / ".env").model_fields_set == set()


def test_every_variable_of_ours_that_the_code_names_is_a_setting():
    sources = [
        path.read_text() for folder in ("churn", "experiment_tracking") for path in (ROOT / folder).rglob("*.py")
    ]
    named = set(re.findall(r"\bCHURN_[A-Z_]+\b", "\n".join(sources)))
    handed_to_dagster = {"CHURN_DAGSTER_DATABASE_URL"}
    assert "CHURN_HOME" in named
    assert named - handed_to_dagster <= {name.upper() for name in Settings.model_fields}


def test_the_environment_wins_over_the_file_and_empty_means_unset(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("MLFLOW_DB_NAME=file\nCHURN_DB_NAME=file\nMLFLOW_DB_PORT=\n")
    monkeypatch.setenv("MLFLOW_DB_NAME", "environment")
    settings = Settings(_env_file=tmp_path / ".env")
    assert (settings.mlflow_db_name, settings.churn_db_name, settings.mlflow_db_port) == ("environment", "file", 5432)


@pytest.mark.parametrize(("text", "age"), [("P7D", timedelta(days=7)), ("3600", timedelta(hours=1))])
def test_an_age_is_seconds_or_iso_8601(monkeypatch, text, age):
    monkeypatch.setenv("CHURN_LOCAL_MAX_AGE", text)
    assert load_settings().churn_local_max_age == age


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_DB_PORT", "wr0ng-s3cret"),
        ("MLFLOW_DB_PORT", "65536"),
        ("MLFLOW_DB_PORT", "0"),
        ("CHURN_LOCAL_FALLBACK", "wr0ng-s3cret"),
        ("CHURN_LOCAL_MAX_AGE", "wr0ng-s3cret"),
        ("CHURN_MAX_QUARANTINE_SHARE", "wr0ng-s3cret"),
        ("CHURN_MAX_QUARANTINE_SHARE", "1.0625"),
        ("CHURN_MAX_QUARANTINE_SHARE", "nan"),
        ("CHURN_DELIVERY_PREFIX", "wr0ng-s3cret"),
        ("CHURN_DELIVERY_PREFIX", "s3://wr0ng-s3cret"),
        ("CHURN_DELIVERY_PREFIX", "s3://wr0ng-s3cret/"),
        ("CHURN_DELIVERY_PREFIX", "s3://bucket/wr0ng-s3cret*"),
    ],
)
def test_a_wrong_value_is_told_by_its_variables_name_and_only_a_number_is_repeated(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"{name}: .*see \.env\.example") as refused:
        load_settings()
    shown = "".join(traceback.format_exception(refused.value))
    assert (f", not {value}" in shown) == ("wr0ng-s3cret" not in value)
    assert "wr0ng-s3cret" not in shown


def test_all_wrong_values_are_told_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_DB_PORT", "x")
    monkeypatch.setenv("CHURN_LOCAL_FALLBACK", "x")
    with pytest.raises(UsageError, match=r"MLFLOW_DB_PORT: .*; CHURN_LOCAL_FALLBACK: "):
        load_settings()


FULL = {"username": "scorer", "password": PASSWORD, "host": "db.internal", "port": 6543, "dbname": "tracking"}


def test_a_secret_gives_the_whole_url(secret):
    secret(FULL)
    url = read_secret(load_settings())
    assert (url.username, url.password, url.host, url.port, url.database) == tuple(FULL.values())
    assert url.drivername == "postgresql+psycopg2"


def test_a_secret_of_only_username_and_password_leaves_the_rest_to_the_defaults(secret):
    secret({"username": "scorer", "password": PASSWORD})
    url = read_secret(load_settings())
    assert (url.host, url.port, url.database) == ("localhost", 5432, "postgres")


def test_host_and_port_that_are_set_win_over_the_secrets_even_when_they_are_the_defaults(secret, monkeypatch):
    secret(FULL)
    monkeypatch.setenv("MLFLOW_DB_HOST", "localhost")
    monkeypatch.setenv("MLFLOW_DB_PORT", "5432")
    url = read_secret(load_settings())
    assert (url.host, url.port) == ("localhost", 5432)


def test_an_empty_host_variable_leaves_the_secrets(secret, monkeypatch):
    secret(FULL)
    monkeypatch.setenv("MLFLOW_DB_HOST", "")
    assert read_secret(load_settings()).host == "db.internal"


@pytest.mark.parametrize("port", ["6543", 6543], ids=repr)
def test_a_port_may_be_text_or_a_number(secret, port):
    secret(FULL | {"port": port})
    assert read_secret(load_settings()).port == 6543


@pytest.mark.parametrize("port", ["wr0ng", 0, 65536, -1, 5432.5, "\N{SUPERSCRIPT TWO}", "9" * 5_000, True, [5432], ""])
def test_a_weird_port_is_refused_without_repeating_it(secret, port):
    name = secret(FULL | {"port": port})
    with pytest.raises(CredentialsError, match=f"secret '{name}' has a port that is not a number from 1 to 65535"):
        read_secret(load_settings())


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("hunter2-plain", "is not a JSON object; a JSON object such as"),
        ('"hunter2"', "is not a JSON object"),
        ('["scorer", "hunter2"]', "is not a JSON object"),
        ({"username": "scorer"}, r"lacks password \(it has: \['username'\]\)"),
        ({"password": "hunter2"}, "lacks username"),
        ({"user": "scorer", "pass": "hunter2"}, "lacks username and password"),
        ({"username": "scorer", "password": ""}, "lacks password"),
        ({"username": None, "password": "hunter2"}, "lacks username"),
        ({"username": "scorer", "password": 12345678}, "lacks password"),
    ],
    ids=range(9),
)
def test_a_secret_of_another_form_is_refused_without_repeating_what_it_holds(secret, value, why):
    name = secret(value)
    with pytest.raises(CredentialsError, match=f"secret '{name}' {why}") as refused:
        read_secret(load_settings())
    shown = "".join(traceback.format_exception(refused.value))
    assert "hunter2" not in shown.replace(repr(value), "")
    assert "12345678" not in str(refused.value)


def test_a_database_name_that_is_a_number_is_taken_as_text(secret):
    secret(FULL | {"dbname": 42})
    assert read_secret(load_settings()).database == "42"


def test_a_missing_secret_is_told_with_its_name_and_region(aws, monkeypatch):
    monkeypatch.setenv("MLFLOW_SECRET_NAME", "nowhere")
    with pytest.raises(CredentialsError, match="there is no secret 'nowhere' in us-east-1; correct MLFLOW_SECRET_NAME"):
        read_secret(load_settings())


def test_a_secret_is_looked_for_in_its_region(secret, monkeypatch):
    secret(FULL)
    monkeypatch.setenv("MLFLOW_SECRET_REGION", "eu-west-1")
    with pytest.raises(CredentialsError, match="in eu-west-1; correct MLFLOW_SECRET_NAME or MLFLOW_SECRET_REGION"):
        read_secret(load_settings())


def test_a_binary_secret_is_refused(aws, monkeypatch):
    name = f"churn-{uuid.uuid4().hex[:12]}"
    boto3.client("secretsmanager").create_secret(Name=name, SecretBinary=b"\x00hunter2")
    monkeypatch.setenv("MLFLOW_SECRET_NAME", name)
    with pytest.raises(CredentialsError, match=f"secret '{name}' is binary; a JSON object") as refused:
        read_secret(load_settings())
    assert "hunter2" not in str(refused.value)


def test_without_credentials_the_secret_cannot_be_read_and_that_is_said(aws, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials of the test before
    monkeypatch.setenv("MLFLOW_SECRET_NAME", "any")
    with pytest.raises(CredentialsError, match="no AWS credentials were found to read secret 'any' with"):
        read_secret(load_settings())


def test_a_secrets_manager_that_does_not_answer_is_worth_a_retry(aws, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("MLFLOW_SECRET_NAME", "any")
    with pytest.raises(SecretsUnavailableError, match="Secrets Manager in us-east-1 did not answer"):
        read_secret(load_settings())


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_ENDPOINT_URL"])
def test_aws_settings_that_cannot_be_meant_are_told_as_such(aws, monkeypatch, name):
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv(name, "nonsense")
    monkeypatch.setenv("MLFLOW_SECRET_NAME", "any")
    with pytest.raises(UsageError, match=f"the AWS settings are wrong .*{name}"):
        read_secret(load_settings())


def test_a_password_of_any_characters_survives_in_every_url_and_shows_in_none(secret):
    secret(FULL)
    with open_deployment(load_settings()) as deployment:
        assert sa.make_url(deployment.tracking_uri).password == PASSWORD
        urls = (deployment.database, deployment.mlflow_database, deployment.dagster_database)
        assert [url.password for url in urls] == [PASSWORD] * 3
        assert [url.database for url in urls] == ["churn_db", "tracking", "dagster_db"]
        rendered = urls[0].render_as_string(hide_password=False)
        assert parse_database_url(rendered, "CHURN_DATABASE_URL") == urls[0]
        quoted = rendered.split("scorer:")[1].split("@")[0]
        for shown in (str(deployment), repr(deployment), *map(str, urls), *map(repr, urls), str(deployment.settings)):
            assert PASSWORD not in shown
            assert quoted not in shown


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "mysql://scorer:hunter2@db/churn",
        "postgresql://scorer:hunter2@db",
        "postgresql://scorer:hunter2@db:port/churn",
        "https://scorer:hunter2@db/churn",
    ],
)
def test_a_database_url_of_another_form_is_refused_by_its_variables_name_and_not_repeated(monkeypatch, url):
    monkeypatch.setenv("CHURN_DATABASE_URL", url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.internal")
    with pytest.raises(UsageError, match=r"CHURN_DATABASE_URL is .*postgresql://user:password@host") as refused:
        open_deployment(load_settings()).__enter__()
    assert "hunter2" not in "".join(traceback.format_exception(refused.value)).replace(repr(url), "")


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"CHURN_DATABASE_URL": "postgresql://u:p@h/d"}, "set without MLFLOW_TRACKING_URI or MLFLOW_SECRET_NAME"),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.internal"}, "without a database for predictions"),
        (
            {"MLFLOW_DB_HOST": "db.internal"},
            "MLFLOW_DB_HOST or .* without MLFLOW_SECRET_NAME; set MLFLOW_SECRET_NAME, which has",
        ),
    ],
    ids=["no registry", "no predictions", "no login"],
)
def test_settings_that_leave_a_service_unsaid_are_refused(monkeypatch, variables, why):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=why):
        open_deployment(load_settings()).__enter__().require_schema()


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "postgresql+psycopg"])
def test_a_users_url_needs_no_driver(scheme):
    url = parse_database_url(f"{scheme}://u:p%40%2F@h:5433/d", "CHURN_DATABASE_URL")
    assert (url.drivername, url.password, url.port, url.database) == ("postgresql+psycopg2", "p@/", 5433, "d")
