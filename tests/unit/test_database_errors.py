"""At stake: whoever reads an error of PostgreSQL, or of a pooler before it, learns what the other side said and what to
do about it, and only what may pass is retried.
"""

import re

import psycopg2
import pytest
import sqlalchemy as sa

from churn.database.connection import SETUP_NEEDS, errors_translated, parse_database_url
from churn.errors import ChurnError, TransientError

URL = parse_database_url("postgresql://ann:hunter2@db.example:6432/churn_predictions", "CHURN_DATABASE_URL")
AT = 'connection to server at "db.example" (10.0.0.7), port 6432 failed: '
SET_UP, POOLER, NEITHER = "run experiment_tracking/setup.py", "PgBouncer and RDS Proxy.*CHURN_DATABASE_URL", ""

# What the driver says of a connection that failed or was lost; the next step, and whether a retry makes sense.
SENTENCES: dict[str, tuple[str, bool]] = {
    f"{AT}Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?": ("server", True),
    'could not translate host name "db.example" to address: Name or service not known': ("MLFLOW_DB_HOST", True),
    f"{AT}timeout expired": ("MLFLOW_DB_HOST", True),
    f"{AT}Connection timed out": ("MLFLOW_DB_HOST", True),
    f"{AT}No route to host": ("MLFLOW_DB_HOST", True),
    f"{AT}Network is unreachable": ("MLFLOW_DB_HOST", True),
    f"{AT}FATAL:  the database system is starting up": ("", True),
    f"{AT}FATAL:  the database system is shutting down": ("", True),
    f"{AT}FATAL:  the database system is in recovery mode": ("", True),
    f"{AT}FATAL:  the database system is not yet accepting connections": ("", True),
    f"{AT}FATAL:  sorry, too many clients already": ("", True),
    f"{AT}FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute": ("", True),
    f"{AT}FATAL:  no more connections allowed (max_client_conn)": ("", True),
    f"{AT}FATAL:  pgbouncer cannot connect to server": ("", True),
    f"{AT}FATAL:  server login has been failing, cached error: connect timeout (server_login_retry)": ("", True),
    f"{AT}FATAL:  Timed-out waiting to acquire database connection": ("", True),
    "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally": ("", True),
    "SSL SYSCALL error: EOF detected": ("", True),
    "SSL error: decryption failed or bad record mac": ("", True),
    "SSL connection has been closed unexpectedly": ("", True),
    "could not receive data from server: Connection reset by peer": ("", True),
    "connection already closed": ("", True),
    "terminating connection due to administrator command": ("", True),
    f'{AT}FATAL:  password authentication failed for user "ann"': ("password in CHURN_DATABASE_URL", False),
    f"{AT}fe_sendauth: no password supplied": ("password in CHURN_DATABASE_URL", False),
    f'{AT}FATAL:  no pg_hba.conf entry for host "10.0.0.9", user "ann", no encryption': ("correct its pg_hba", False),
    f"{AT}FATAL:  unsupported startup parameter: options": (POOLER, False),
    f"{AT}FATAL:  unsupported startup parameter in options: role": (POOLER, False),
    f"{AT}FATAL:  Feature not supported: RDS Proxy currently doesn't support command-line options.": (POOLER, False),
    "startup parameters were ignored; role, time zone and limit are ['none', 'Europe/Rome', '0']": (POOLER, False),
    f"{AT}server does not support SSL, but SSL was required": ("PGSSLMODE", False),
    f"{AT}SSL error: certificate verify failed": ("PGSSLROOTCERT", False),
    f'{AT}FATAL:  database "churn_predictions" does not exist': (SET_UP, False),
    f'{AT}FATAL:  role "churn_writer" does not exist': (SET_UP, False),
    f'{AT}FATAL:  permission denied to set role "churn_writer"': (SET_UP, False),
    f"{AT}FATAL:  no such database: churn_predictions": ("CHURN_DATABASE_URL says of it", False),
    f"{AT}FATAL:  This RDS proxy has no credentials for the role ann": ("CHURN_DATABASE_URL says of it", False),
    f'{AT}FATAL:  role "ann" is not permitted to log in': ("CHURN_DATABASE_URL says of it", False),
    f"{AT}authentication method 13 not supported": ("CHURN_DATABASE_URL says of it", False),
    f"{AT}FATAL:  invalid startup packet layout: expected terminator as last byte": ("says of it", False),
    'invalid integer value "x" for connection option "port"': ("CHURN_DATABASE_URL says of it", False),
}
# What a server that answers says, by SQLSTATE.
STATES: dict[str, tuple[str, str, bool]] = {
    "25006": ("cannot execute INSERT in a read-only transaction", "try again", True),
    "40001": ("could not serialize access", "try again", True),
    "40P01": ("deadlock detected", "try again", True),
    "53100": ("could not extend file: No space left on device", "try again", True),
    "53300": ("too many connections for role", "try again", True),
    "55P03": ("canceling statement due to lock timeout", "try again", True),
    "57014": ("canceling statement due to user request", "try again", True),
    "57P01": ("terminating connection due to administrator command", "try again", True),
    "57P03": ("the database system is starting up", "try again", True),
    "08P01": ("server conn crashed?", "try again", True),
    "42501": ("permission denied for schema public", SET_UP, False),
    "42P01": ('relation "scoring_batches" does not exist', SET_UP, False),
    "42883": ("function open_week(date) does not exist", SET_UP, False),
    "23505": ("duplicate key value violates unique constraint", "rejected", False),
    "22P02": ("invalid input syntax", "rejected", False),
    "0A000": ("cached plan must not change result type", "rejected", False),
    "XX001": ("invalid page in block 7", "rejected", False),
    "58030": ("could not read block: Input/output error", "rejected", False),
}


class Answer(psycopg2.DatabaseError):  # type: ignore[misc] # psycopg2 is untyped
    """An error of a statement; the driver sets its SQLSTATE from the server's answer."""

    pgcode = ""


def translated(error: BaseException, **remedy: str) -> ChurnError:
    with pytest.raises(ChurnError) as found, errors_translated(URL, **remedy):
        raise error
    assert "hunter2" not in str(found.value)
    return found.value


@pytest.mark.parametrize("sentence", SENTENCES)
def test_what_the_other_side_said_is_passed_on_and_only_what_may_pass_is_retried(sentence: str) -> None:
    next_step, may_pass = SENTENCES[sentence]

    found = translated(sa.exc.OperationalError("SELECT 1", {}, psycopg2.OperationalError(sentence)))

    assert " ".join(sentence.split()) in str(found)
    assert re.search(next_step, str(found))
    assert isinstance(found, TransientError) == may_pass


@pytest.mark.parametrize("state", STATES)
def test_a_code_and_its_sentence_are_passed_on_and_only_what_may_pass_is_retried(state: str) -> None:
    sentence, next_step, may_pass = STATES[state]
    error = type("Answer", (Answer,), {"pgcode": state})(sentence)

    found = translated(error)

    assert f"{state}: {sentence}" in str(found)
    assert next_step in str(found)
    assert isinstance(found, TransientError) == may_pass
    assert SET_UP not in str(translated(error, remedy=SETUP_NEEDS))
