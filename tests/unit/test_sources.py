"""At stake: which bytes are scored, and that an analyst can see it when they are not the ones meant.

The local copy may stand in for S3 when S3 cannot be had, always flagged; it must never hide a denied access, a damaged
object or a setting that is wrong.
"""

import hashlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from churn.concurrency import CircuitBreaker
from churn.errors import (
    AccessDeniedError,
    ChurnError,
    InputError,
    SourceError,
    SourceUnavailableError,
    TransientError,
    UsageError,
)
from churn.samples.simulated import SIMULATED
from churn.storage.inputs import INPUT_FOLDER, INPUT_NAMES, UnfinishedError
from churn.storage.places import ATTEMPTS, Bucket, Folder
from churn.storage.sources import GoneError, Sources
from churn.variants import Variant
from tests.support import ROOT

KEY = "data/churn/activity.csv"
BODY = b"account_id,activity_month\n1,2025-03-01\n"
OTHER = BODY.replace(b"1,", b"2,")
MODEL, NAMES = "models/churn/xgb_churn_model_2.bin", "data/churn/feature_names_3.json"
US = Variant("us")
LISTING = (
    '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false'
    "</IsTruncated><Contents><Key>{key}</Key><LastModified>2025-03-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size></Contents></ListBucketResult>"
)

_STATED = {"Last-Modified": "Sat, 01 Mar 2025 00:00:00 GMT"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A local copy with the base variant's input."""
    put(tmp_path / "local", KEY, OTHER)
    return tmp_path / "local"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def put(place: Path | str, key: str, body: bytes) -> None:
    if isinstance(place, Path):
        (place / key).parent.mkdir(parents=True, exist_ok=True)
        (place / key).write_bytes(body)
    else:
        boto3.client("s3").put_object(Bucket=place, Key=key, Body=body)


class StandInS3:
    """An S3 that answers every request as told, and counts them."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda request: reply(request, 500)
        self.paths: list[str] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                stand_in.paths.append(self.path)
                stand_in.answer(self)

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def reply(request, status, body=b"", *, headers=(), length=None) -> None:
    request.send_response(status)
    for name, value in dict(headers).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    request.wfile.write(body)
    request.close_connection = length is not None


def error(status: int, code: str) -> Callable[[BaseHTTPRequestHandler], None]:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return lambda request: reply(request, status, body)


def holding(body: bytes, headers=(), length: int | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answer listings truthfully for ``BODY``, requests for it with ``body``, and those for other files with none."""
    etag = hashlib.md5(BODY, usedforsecurity=False).hexdigest()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if "list-type" in request.path:
            reply(request, 200, LISTING.format(key=KEY, etag=etag, size=len(BODY)).encode())
        elif request.path.endswith(KEY):
            reply(request, 200, body, headers={**_STATED, "ETag": f'"{etag}"', **dict(headers)}, length=length)
        else:
            error(404, "NoSuchKey")(request)

    return answer


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, aws: str) -> Iterator[StandInS3]:
    stand_in = StandInS3()
    monkeypatch.setenv("AWS_ENDPOINT_URL", stand_in.url)
    thread = threading.Thread(target=stand_in.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()
    thread.join()


def require_fallback(sources: Sources, into: Path, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """The local copy must be read, and said so in its provenance and in the log."""
    with caplog.at_level(logging.WARNING):
        file = sources.fetch_input(Variant(), into)

    assert file.path.read_bytes() == OTHER
    assert file.provenance.source == "local"
    assert reason in file.provenance.fallback_reason
    assert f"base: read the local copy of base, because {file.provenance.fallback_reason}" in caplog.messages


def test_s3_comes_first(bucket, root, into):
    put(bucket, KEY, BODY)

    file = Sources(Bucket(bucket), Folder(root)).fetch_input(Variant(), into)

    assert file.path.parent == into
    assert file.path.read_bytes() == BODY
    assert file.provenance.source == "s3"
    assert file.provenance.fallback_reason is None
    assert file.provenance.uri == f"s3://{bucket}/{KEY}"


@pytest.mark.parametrize("place", ["s3", "local"])
@pytest.mark.parametrize("body", [BODY, b"", b"x" * 3_000_000], ids=len)
def test_the_provenance_names_exactly_the_bytes_that_were_copied(bucket, root, into, place, body):
    put(bucket if place == "s3" else root, US.prefix + KEY, body)

    file = Sources(Bucket(bucket), Folder(root)).fetch_input(US, into)

    provenance = file.provenance
    assert (provenance.source, provenance.variant) == (place, US)
    assert file.path.read_bytes() == body
    assert provenance.size == len(body)
    assert provenance.sha256 == hashlib.sha256(body).hexdigest()
    assert provenance.uri.endswith("/geography-us/data/churn/activity.csv")
    assert provenance.modified_at.utcoffset() == timedelta(0)


def test_an_object_uploaded_in_parts_has_no_md5_for_an_etag_and_is_read(bucket, root, into):
    client, body = boto3.client("s3"), b"x" * (5 << 20)
    upload = client.create_multipart_upload(Bucket=bucket, Key=KEY)["UploadId"]
    part = client.upload_part(Bucket=bucket, Key=KEY, UploadId=upload, PartNumber=1, Body=body)
    client.complete_multipart_upload(
        Bucket=bucket, Key=KEY, UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    )

    file = Sources(Bucket(bucket), Folder(root)).fetch_input(Variant(), into)

    assert file.provenance.version.endswith("-1")
    assert file.provenance.sha256 == hashlib.sha256(body).hexdigest()


def test_the_local_copy_is_read_when_s3_is_not_configured(root, into, caplog):
    require_fallback(Sources(None, Folder(root)), into, "S3 is not configured (MLFLOW_S3_BUCKET)", caplog)


def test_the_local_copy_is_read_without_credentials(aws, root, into, monkeypatch, caplog):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials of the test before
    require_fallback(Sources(Bucket("any"), Folder(root), patience_s=0), into, "no AWS credentials were found", caplog)


def test_the_local_copy_is_read_when_the_endpoint_refuses_connections(aws, root, into, monkeypatch, caplog):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    require_fallback(Sources(Bucket("any"), Folder(root), patience_s=0), into, "could not be reached", caplog)


def test_the_local_copy_is_read_when_the_key_is_missing(bucket, root, into, caplog):
    put(bucket, "data/churn/another.csv", BODY)
    require_fallback(Sources(Bucket(bucket), Folder(root)), into, f"s3://{bucket}/ has none of {INPUT_FOLDER}", caplog)


@pytest.mark.parametrize(
    "answer",
    [
        error(503, "SlowDown"),
        error(500, "InternalError"),
        error(429, "TooManyRequests"),
        error(400, "RequestTimeout"),
        lambda request: reply(request, 503, b"Service Unavailable"),
        lambda request: reply(request, 502, b"<html><body>Bad gateway<br></html>"),
        lambda request: request.connection.shutdown(socket.SHUT_RDWR),
    ],
    ids=["503", "500", "429", "timeout", "text", "html", "dropped"],
)
def test_the_local_copy_is_read_after_s3_failed_several_times(s3, root, into, caplog, answer):
    s3.answer = answer
    require_fallback(Sources(Bucket("any"), Folder(root), patience_s=0), into, "s3://any/data/churn/", caplog)
    assert len(s3.paths) == ATTEMPTS


@pytest.mark.parametrize(
    "how", [{"body": BODY[:10], "length": len(BODY)}, {"body": b"", "length": len(BODY)}], ids=["cut", "nothing"]
)
def test_a_truncated_body_is_asked_for_again_and_then_the_local_copy_is_read(s3, root, into, caplog, how):
    s3.answer = holding(**how)
    require_fallback(
        Sources(Bucket("any"), Folder(root), patience_s=0),
        into,
        "could not be reached (ResponseStreamingError)",
        caplog,
    )
    assert len([path for path in s3.paths if KEY in path]) == ATTEMPTS


def test_a_failure_that_passes_leaves_no_trace(s3, root, into):
    answers = iter([error(503, "SlowDown"), *[holding(BODY[:9], length=len(BODY))] * 3, *[holding(BODY)] * 3])

    def answer_in_turn(request: BaseHTTPRequestHandler) -> None:
        next(answers)(request)

    s3.answer = answer_in_turn

    file = Sources(Bucket("any"), Folder(root), patience_s=0).fetch_input(Variant(), into)

    assert file.path.read_bytes() == BODY
    assert file.provenance.fallback_reason is None


@pytest.mark.parametrize(
    "answer",
    [
        error(403, "AccessDenied"),
        error(403, "InvalidAccessKeyId"),
        error(403, "SignatureDoesNotMatch"),
        error(400, "ExpiredToken"),
        lambda request: reply(request, 403, b"no"),
        lambda request: reply(request, 401),
    ],
    ids=["denied", "key", "signature", "expired", "403", "401"],
)
def test_denied_access_is_told_at_once_and_never_answered_with_the_local_copy(s3, root, into, answer):
    s3.answer = answer
    with pytest.raises(
        AccessDeniedError, match=r"access to s3://any/data/churn/\S+ was denied .*s3:ListBucket"
    ) as denied:
        Sources(Bucket("any"), Folder(root), patience_s=0).fetch_input(Variant(), into)
    assert not isinstance(denied.value, TransientError)
    assert len(s3.paths) == 1


DENIALS = {
    ("AccessDenied", "User: arn:aws:iam::1:role/churn is not authorized to perform: kms:Decrypt"): "needs kms:Decrypt",
    ("KMS.DisabledException", "the key is disabled"): "needs kms:Decrypt",
    ("KMS.NotFoundException", "no such key"): "needs kms:Decrypt",
    ("RequestTimeTooSkewed", "The difference between the request time and the time here is large"): "clock is wrong",
    ("InvalidObjectState", "The operation is not valid for the object's storage class"): "archived in Glacier",
    ("ExpiredToken", "The provided token has expired"): "renew the credentials",
    ("TokenRefreshRequired", "refresh it"): "renew the credentials",
    ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist"): "access key or its secret is wrong",
    ("SignatureDoesNotMatch", "The request signature does not match"): "access key or its secret is wrong",
    ("AllAccessDisabled", "All access to this object has been disabled"): "the bucket is disabled",
    ("AccessDenied", "Access Denied by a bucket policy"): "the role needs s3:ListBucket and s3:GetObject",
    ("AccountProblem", "There is a problem with your account"): "the role needs s3:ListBucket",
    ("InvalidPayer", "All access to this bucket has been disabled"): "the role needs s3:ListBucket",
    ("NotSignedUp", "Your account is not signed up"): "the role needs s3:ListBucket",
    ("CrossLocationLoggingProhibited", "not allowed"): "the role needs s3:ListBucket",
}  # fmt: skip


@pytest.mark.parametrize(("code", "message"), DENIALS)
def test_a_denial_passes_on_its_code_its_sentence_and_the_next_step(s3, root, into, code, message):
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    s3.answer = lambda request: reply(request, 403, body)
    with pytest.raises(AccessDeniedError) as denied:
        Sources(Bucket("any"), Folder(root), patience_s=0).fetch_input(Variant(), into)
    assert f"({code}: {message})" in str(denied.value)
    assert DENIALS[code, message] in str(denied.value)


@pytest.mark.parametrize(
    "answer", [error(301, "PermanentRedirect"), error(400, "InvalidToken")], ids=["moved", "token"]
)
def test_an_answer_that_no_retry_and_no_local_copy_may_hide_is_told(s3, root, into, answer):
    s3.answer = answer
    with pytest.raises(SourceError, match="could not be read: ") as told:
        Sources(Bucket("any"), Folder(root), patience_s=0).fetch_input(Variant(), into)
    assert not isinstance(told.value, TransientError)
    assert len(s3.paths) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (holding(OTHER), "does not match its ETag"),
        (holding(BODY, headers={"x-amz-checksum-crc32": "AAAAAA=="}), "failed its checksum"),
    ],
    ids=["etag", "crc32"],
)
def test_bytes_that_fail_their_checksum_are_refused_and_never_replaced_by_the_local_copy(s3, root, into, answer, why):
    s3.answer = answer
    with pytest.raises(InputError, match=f"s3://any/{KEY} {why}.*; upload it again"):
        Sources(Bucket("any"), Folder(root), patience_s=0).fetch_input(Variant(), into)
    assert len([path for path in s3.paths if KEY in path]) == ATTEMPTS


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_PROFILE"])
def test_aws_settings_that_cannot_be_meant_are_told_as_such(aws, monkeypatch, name):
    monkeypatch.setenv(name, "nonsense")
    with pytest.raises(UsageError, match=f"the AWS settings are wrong .*{name}"):
        Bucket("any")


def test_a_bucket_name_that_cannot_be_one_is_told_as_such(aws, root, into):
    with pytest.raises(UsageError, match="MLFLOW_S3_BUCKET 'my bucket' cannot be a bucket's name"):
        Sources(Bucket("my bucket"), Folder(root)).fetch_input(Variant(), into)


def test_the_local_copy_is_not_read_where_it_is_forbidden(bucket, root, into):
    for place in (None, Bucket(bucket)):
        with pytest.raises(SourceError, match="and CHURN_LOCAL_FALLBACK=never forbids the local copy") as refused:
            Sources(place, Folder(root), fallback=False).fetch_input(Variant(), into)
        assert not isinstance(refused.value, TransientError)


def test_where_the_local_copy_is_forbidden_a_failing_s3_is_worth_a_retry(s3, root, into):
    s3.answer = error(503, "SlowDown")
    with pytest.raises(SourceUnavailableError, match="CHURN_LOCAL_FALLBACK=never"):
        Sources(Bucket("any"), Folder(root), patience_s=0, fallback=False).fetch_input(Variant(), into)


def test_a_local_copy_older_than_allowed_is_refused_with_its_age(root, into):
    three_days_ago = (root / KEY).stat().st_mtime - 3 * 86_400
    os.utime(root / KEY, (three_days_ago, three_days_ago))

    assert Sources(None, Folder(root), max_age=timedelta(days=4)).fetch_input(Variant(), into)
    with pytest.raises(SourceError, match=r"is 3 days, .* old; CHURN_LOCAL_MAX_AGE allows 2 days"):
        Sources(None, Folder(root), max_age=timedelta(days=2)).fetch_input(Variant(), into)


def test_the_age_of_what_s3_holds_does_not_matter(bucket, root, into):
    put(bucket, KEY, BODY)
    sources = Sources(Bucket(bucket), Folder(root), max_age=timedelta(0))
    assert sources.fetch_input(Variant(), into).provenance.source == "s3"


def test_the_files_of_a_model_are_never_mixed_from_two_places(bucket, root, into):
    put(bucket, US.prefix + MODEL, b"model in s3")
    for key, body in ((MODEL, b"local model"), (NAMES, b"local names")):
        put(root, US.prefix + key, body)

    files = Sources(Bucket(bucket), Folder(root)).fetch(US, [[MODEL], [NAMES]], into)

    assert [file.path.read_bytes() for file in files] == [b"local model", b"local names"]
    assert {file.provenance.source for file in files} == {"local"}
    assert {file.provenance.variant for file in files} == {US}


def test_nor_from_two_variants(root, into):
    put(root, US.prefix + MODEL, b"model of us")
    for key in (MODEL, NAMES):
        put(root, key, b"of base")

    with pytest.raises(SourceError, match=r"there is no local copy: .*geography-us has none of data/churn/feature"):
        Sources(None, Folder(root)).fetch(US, [[MODEL], [NAMES]], into)


OWN, SIMULATED_BODY = b"a variant's own", b"the bundled simulation"
OF_US, OF_BASE = US.prefix + KEY, KEY


def empty(request: BaseHTTPRequestHandler) -> None:
    """Answer as a bucket without any object does."""
    if "list-type" in request.path:
        reply(request, 200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
    else:
        error(404, "NoSuchKey")(request)


def having(key: str, get: Callable[[BaseHTTPRequestHandler], None]) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answer as a bucket with one object does, and a request for that object with ``get``."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if "list-type" in request.path:
            reply(request, 200, LISTING.format(key=key, etag="0" * 32, size=3).encode())
        else:
            (get if request.path.split("?")[0].endswith(key) else error(404, "NoSuchKey"))(request)

    return answer


WRONG_BYTES = having(OF_US, lambda request: reply(request, 200, b"abc", headers={**_STATED, "ETag": f'"{"0" * 32}"'}))
NO_BUCKET = None

# What S3 answers to geography-us (None: no bucket is set), the local files, and what is read or why nothing is.
STAND_INS = {
    "no bucket, an own file": (NO_BUCKET, {OF_US: OWN, OF_BASE: SIMULATED_BODY}, OWN),
    "no bucket, the bundled file under the own prefix": (NO_BUCKET, {OF_US: SIMULATED_BODY}, SIMULATED_BODY),
    "no bucket, only the bundled file": (NO_BUCKET, {OF_BASE: SIMULATED_BODY}, SIMULATED_BODY),
    "no bucket, only the base variant's own file": (NO_BUCKET, {OF_BASE: OWN}, "there is no local copy"),
    "no bucket, only another's file": (NO_BUCKET, {"geography-uk/" + KEY: OWN}, "there is no local copy"),
    "no bucket, nothing": (NO_BUCKET, {}, "there is no local copy"),
    "key missing, an own file": (empty, {OF_US: OWN}, OWN),
    "key missing, only the base variant's own file": (empty, {OF_BASE: OWN}, "there is no local copy"),
    "key missing, only the bundled file": (empty, {OF_BASE: SIMULATED_BODY}, "there is no local copy"),
    "key missing, the bundled file under the own prefix": (empty, {OF_US: SIMULATED_BODY}, "is the bundled simulation"),
    "key missing, the bundled file by another name": (
        empty,
        {f"{US.prefix}data/churn/activity.json": SIMULATED_BODY},
        "is the bundled simulation, .*upload the file of geography-us to s3://any/geography-us/",
    ),
    "throttled for long, an own file": (error(503, "SlowDown"), {OF_US: OWN}, OWN),
    "throttled for long, the bundled file": (error(503, "SlowDown"), {OF_US: SIMULATED_BODY}, "bundled simulation"),
    "failing for long, another's file": (error(500, "InternalError"), {OF_BASE: OWN}, "kept failing.*no local copy"),
    "throttled by number": (error(429, "TooManyRequests"), {OF_US: OWN}, OWN),
    "a gateway's page": (lambda request: reply(request, 502, b"<html>Bad gateway</html>"), {OF_US: OWN}, OWN),
    "dropped": (lambda request: request.connection.shutdown(socket.SHUT_RDWR), {OF_US: OWN}, OWN),
    "denied": (error(403, "AccessDenied"), {OF_US: OWN}, "access to .* was denied"),
    "not logged in": (lambda request: reply(request, 401), {OF_US: OWN}, "access to .* was denied"),
    "archived": (having(OF_US, error(403, "InvalidObjectState")), {OF_US: OWN}, "archived in Glacier"),
    "no such bucket": (error(404, "NoSuchBucket"), {OF_US: OWN}, "the bucket s3://any does not exist"),
    "no S3 at all": (lambda request: reply(request, 404, b"<html>Not found</html>"), {OF_US: OWN}, "read: HTTP 404"),
    "bucket of another region": (error(301, "PermanentRedirect"), {OF_US: OWN}, "could not be read: PermanentRedirect"),
    "token of another kind": (error(400, "InvalidToken"), {OF_US: OWN}, "could not be read: InvalidToken"),
    "wrong bytes": (WRONG_BYTES, {OF_US: OWN}, "does not match its ETag"),
    "a folder being written": (
        having(f"{US.prefix}data/churn/activity.parquet/part-0.parquet", error(500, "x")),
        {OF_US: OWN},
        "no _SUCCESS",
    ),
    "activity of another name": (
        having(f"{US.prefix}data/churn/activity.xlsx", error(500, "x")),
        {OF_US: OWN},
        "looks like the variant's activity",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STAND_INS)
def test_what_may_stand_in_for_a_variants_input(s3, tmp_path, into, case):
    answer, files, expected = STAND_INS[case]
    (tmp_path / "local").mkdir()
    for key, body in files.items():
        put(tmp_path / "local", key, body)
    if answer is not None:
        s3.answer = answer
    simulated = frozenset({hashlib.sha256(SIMULATED_BODY).hexdigest()})
    bucket = None if answer is None else Bucket("any")
    sources = Sources(bucket, Folder(tmp_path / "local"), simulated=simulated, patience_s=0)
    if isinstance(expected, str):
        with pytest.raises(ChurnError, match=expected):
            sources.fetch_input(US, into)
        return

    file = sources.fetch_input(US, into)

    assert file.path.read_bytes() == expected
    owner = US if OF_US in files else Variant()
    assert (file.provenance.source, file.provenance.variant) == ("local", owner)
    is_own_or_says_so = owner == US or "geography-us has no input of its own, and the bundled" in str(
        file.provenance.fallback_reason
    )
    assert is_own_or_says_so
    assert file.provenance.fallback_reason


def test_the_bundled_files_are_known_by_their_hashes():
    files = [path for folder in ("data", "models") for path in (ROOT / folder / "churn").iterdir()]
    bundled = [path for path in files if path.name not in ("README.md", "feature_names_3.json")]
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in bundled} <= SIMULATED
    assert len(bundled) == 5


def test_a_busy_bucket_is_waited_for(s3, root, into):
    well, busy = holding(BODY), error(503, "SlowDown")
    s3.answer = lambda request: busy(request) if len(s3.paths) < 6 else well(request)
    file = Sources(Bucket("any"), Folder(root), patience_s=20).fetch_input(Variant(), into)
    assert (file.provenance.source, file.path.read_bytes()) == ("s3", BODY)


def test_behind_an_open_breaker_a_fleet_waits_once(s3, root, into):
    s3.answer = error(503, "SlowDown")
    circuit = CircuitBreaker(failures=1, pause_s=0.5)
    sources = Sources(Bucket("any"), Folder(root), patience_s=0, circuit=circuit)
    sources.fetch_input(Variant(), into)  # opens it
    for n_requests, is_waiting in ((2 * ATTEMPTS, True), (2 * ATTEMPTS, False)):
        started = time.monotonic()
        found = sources.fetch_input(Variant(), into).provenance
        assert found.source == "local"
        if not is_waiting:
            assert found.fallback_reason == "s3://any/ kept failing (SlowDown), as for other variants just before"
        assert (time.monotonic() - started > 0.4) == is_waiting
        assert len(s3.paths) == n_requests
    time.sleep(0.5)
    s3.answer = holding(BODY)
    assert sources.fetch_input(Variant(), into).provenance.source == "s3"


def test_the_base_variants_file_in_s3_never_stands_in_for_anothers(bucket, tmp_path, into):
    put(bucket, KEY, BODY)
    with pytest.raises(SourceError, match=rf"s3://{bucket}/geography-us/ has none of .*and there is no local copy"):
        Sources(Bucket(bucket), Folder(tmp_path / "nothing")).fetch_input(US, into)


def test_a_file_that_is_nowhere_is_told_with_both_places(bucket, tmp_path, into):
    with pytest.raises(SourceError, match=r"s3://.* has none of .*there is no local copy: file://.* has none of"):
        Sources(Bucket(bucket), Folder(tmp_path)).fetch_input(Variant(), into)


@pytest.mark.parametrize("place", ["s3", "local"])
def test_of_several_inputs_the_first_of_the_agreed_order_is_read(bucket, tmp_path, into, place):
    where = bucket if place == "s3" else tmp_path / "local"
    sources = Sources(Bucket(bucket), Folder(tmp_path / "local"))
    for name in reversed(INPUT_NAMES):
        put(where, INPUT_FOLDER + name, name.encode())
        assert sources.fetch_input(Variant(), into).path.read_bytes() == name.encode()


def test_the_preferred_input_is_read_by_a_single_request(s3, root, into):
    preferred = INPUT_FOLDER + INPUT_NAMES[0]
    s3.answer = lambda request: reply(request, 200, BODY, headers={**_STATED, "ETag": '"a version"'})

    file = Sources(Bucket("any"), Folder(root), patience_s=0).fetch_input(Variant(), into)

    assert (file.path.read_bytes(), file.provenance.version) == (BODY, "a version")
    assert [path.partition("?")[0] for path in s3.paths] == [f"/any/{preferred}"]


def test_an_answer_that_does_not_say_what_it_holds_is_told(s3, root, into):
    s3.answer = lambda request: reply(request, 200, BODY)
    with pytest.raises(SourceError, match="came without 'ETag'; is AWS_ENDPOINT_URL that of an S3"):
        Sources(Bucket("any"), Folder(root), patience_s=0).fetch_input(Variant(), into)


def test_a_file_where_a_folder_should_be_holds_no_input(tmp_path, into):
    put(tmp_path, "data", BODY)
    with pytest.raises(SourceError, match=r"there is no local copy: .* has none of"):
        Sources(None, Folder(tmp_path)).fetch_input(Variant(), into)


def test_files_below_or_beside_the_data_folder_are_not_taken_for_inputs(bucket, tmp_path, into):
    for key in ("data/churn/old/activity.csv", "data/churn_old/activity.csv", "geography-us/" + KEY):
        put(bucket, key, BODY)
        put(tmp_path / "local", key, BODY)
    with pytest.raises(SourceError):
        Sources(Bucket(bucket), Folder(tmp_path / "local")).fetch_input(Variant(), into)


def test_a_listing_of_several_pages_is_read_to_its_end(s3, root, into):
    whole = holding(BODY)

    def answer(request: BaseHTTPRequestHandler) -> None:
        if "list-type" in request.path and "continuation-token=next" not in request.path:
            truncated = "<IsTruncated>true</IsTruncated><NextContinuationToken>next</NextContinuationToken>"
            reply(request, 200, f"<ListBucketResult>{truncated}</ListBucketResult>".encode())
        else:
            whole(request)

    s3.answer = answer
    assert Sources(Bucket("any"), Folder(root), patience_s=0).fetch_input(Variant(), into).path.read_bytes() == BODY


class BucketChangedOnce(Bucket):
    """Someone uploads a new version, or deletes the file, right after the first listing."""

    def __init__(self, name: str, change: Callable[[], object]) -> None:
        super().__init__(name)
        self.change: Callable[[], object] | None = change

    def list(self, prefix: str):
        entries = super().list(prefix)
        if self.change:
            self.change()
            self.change = None
        return entries


def test_a_file_that_changed_after_it_was_listed_is_read_anew_and_whole(bucket, root, into):
    put(bucket, KEY, BODY)
    changing = BucketChangedOnce(bucket, lambda: put(bucket, KEY, OTHER * 2))

    file = Sources(changing, Folder(root)).fetch_input(Variant(), into)

    assert file.path.read_bytes() == OTHER * 2
    assert file.provenance.version == hashlib.md5(OTHER * 2, usedforsecurity=False).hexdigest()
    assert file.provenance.source == "s3"


def test_a_file_that_was_deleted_after_it_was_listed_is_missing(bucket, root, into, caplog):
    put(bucket, KEY, BODY)
    changing = BucketChangedOnce(bucket, lambda: boto3.client("s3").delete_object(Bucket=bucket, Key=KEY))
    require_fallback(Sources(changing, Folder(root)), into, "does not exist (NoSuchKey)", caplog)


class FolderChangedOnce(Folder):
    def __init__(self, root: Path, change: Callable[[], object]) -> None:
        super().__init__(root)
        self.change = change

    def list(self, prefix: str):
        entries = super().list(prefix)
        self.change()
        return entries


def test_a_local_file_that_changes_while_it_is_read_is_not_used_and_worth_a_retry(root, into):
    for change in (lambda: put(root, KEY, b"longer" + OTHER), (root / KEY).unlink):
        with pytest.raises(SourceUnavailableError):
            Sources(None, FolderChangedOnce(root, change)).fetch_input(Variant(), into)


@pytest.mark.parametrize("place", ["s3", "local"])
def test_the_inputs_version_changes_when_its_content_does_and_only_then(bucket, root, place):
    where = bucket if place == "s3" else root
    sources = Sources(Bucket(bucket) if place == "s3" else None, Folder(root))
    assert sources.input_version(US) is None

    put(where, US.prefix + KEY, BODY)
    first = sources.input_version(US)
    assert first == sources.input_version(US)
    assert US.prefix + KEY in first

    put(where, US.prefix + KEY, OTHER * 2)
    assert sources.input_version(US) != first


FORMS = {
    "gzip": {"activity.csv.gz": BODY},
    "zstd": {"activity.jsonl.zst": BODY},
    "packed Parquet": {"activity.parquet.gz": BODY},
    "folder of Spark": {
        "activity.parquet/_SUCCESS": b"", "activity.parquet/part-0-c000.snappy.parquet": BODY,
        "activity.parquet/part-1-c000.snappy.parquet": OTHER, "activity.parquet/.part-0.crc": b"crc",
    },
    "folder of CSV": {"activity.csv/_SUCCESS": b"", "activity.csv/part-0.csv.gz": BODY},
    "folder of Databricks": {
        "activity.parquet/_SUCCESS": b"", "activity.parquet/_committed_1": b"x", "activity.parquet/_started_1": b"x",
        "activity.parquet/part-0.parquet": BODY, "activity.parquet/_delta_log/0.json": b"x",
    },
    "folder of folders": {
        "activity.json/_SUCCESS": b"", "activity.json/month=1/part-0.json": BODY,
        "activity.json/month=2/part-0.json": OTHER,
    },
}  # fmt: skip


@pytest.mark.parametrize("place", ["s3", "local"])
@pytest.mark.parametrize("form", FORMS)
def test_an_input_may_be_packed_or_a_folder_of_parts(bucket, tmp_path, into, place, form):
    where = bucket if place == "s3" else tmp_path / "new"
    for name, body in {**FORMS[form], "X_test_sample_2.json": b"sample"}.items():
        put(where, US.prefix + INPUT_FOLDER + name, body)
    sources = Sources(Bucket(bucket) if place == "s3" else None, Folder(tmp_path / "new"))
    parts = {name: body for name, body in FORMS[form].items() if body in (BODY, OTHER)}

    file = sources.fetch_input(US, into)

    paths = [file.path] if file.path.is_file() else [path for path in file.path.rglob("*") if path.is_file()]
    assert {path.relative_to(into).as_posix(): path.read_bytes() for path in paths} == parts
    provenance = file.provenance
    assert (provenance.source, provenance.size) == (place, len(BODY) * len(parts))
    assert sources.input_version(US) == f"{provenance.uri}@{provenance.version}"
    (into / "again").mkdir()
    again = sources.fetch_again(US, provenance.uri, provenance.version, provenance.version_id, into / "again")
    assert again.provenance.sha256 == provenance.sha256
    put(where, US.prefix + INPUT_FOLDER + next(iter(parts)), OTHER * 3)
    assert sources.input_version(US) != f"{provenance.uri}@{provenance.version}"
    with pytest.raises(GoneError):
        sources.fetch_again(US, provenance.uri, provenance.version, provenance.version_id, into / "again")


@pytest.mark.parametrize("place", ["s3", "local"])
@pytest.mark.parametrize(
    "names", [["part-0.parquet"], ["_temporary/0/part-0.parquet"], ["_SUCCESS"], ["_SUCCESS", "_committed"]], ids=str
)
def test_a_folder_that_is_being_written_is_waited_for_and_nothing_takes_its_place(bucket, root, into, place, names):
    where = bucket if place == "s3" else root
    for name in names:
        put(where, f"{US.prefix}{INPUT_FOLDER}activity.parquet/{name}", BODY)
    put(where, f"{US.prefix}{INPUT_FOLDER}X_test_sample_2.json", b"sample")
    sources = Sources(Bucket(bucket) if place == "s3" else None, Folder(root))

    with pytest.raises(UnfinishedError, match=r"activity\.parquet/ has . parts and (no|a) _SUCCESS"):
        sources.fetch_input(US, into)
    assert sources.input_version(US) is None


def test_the_sample_does_not_take_the_place_of_activity_of_another_name(tmp_path, root, into):
    names = (
        "activity.xlsx", "activity.csv.bz2", "Activity.csv", "activity", "activity-2025.csv", "activity_2025.parquet",
        "us_activity.parquet", "player-activity.jsonl.gz", "ACTIVITY (1).csv", "activity.csv.tmp", "activity.txt",
        "activity.delta/_delta_log/0.json", "part-00000-7f3c.snappy.parquet", "activity_month=2025-10/part-0.parquet",
        "month=10/part-00000.csv", "activity.parquet.inprogress/part-0.parquet", "daily activity.tsv",
    )  # fmt: skip
    for place, name in enumerate(names):
        folder = Folder(tmp_path / str(place))
        folder.write(f"{INPUT_FOLDER}X_test_sample_2.json", b"sample")
        folder.write(f"{INPUT_FOLDER}{name}", BODY)
        with pytest.raises(
            InputError, match=f"{re.escape(name)} looks like the variant's activity.*rename it to one of"
        ):
            Sources(None, folder).fetch_input(Variant(), into)


def test_the_sample_is_read_beside_what_is_no_activity(tmp_path, into):
    names = "activity.md", "feature_names_3.json", "columns.json", "inactivity.csv", "activitylog.csv", "X_train.json"
    for name in ("X_test_sample_2.json", *names):
        Folder(tmp_path / "new").write(INPUT_FOLDER + name, name.encode())

    assert (
        Sources(None, Folder(tmp_path / "new")).fetch_input(Variant(), into).path.read_bytes()[:13] == b"X_test_sample"
    )


@pytest.mark.parametrize("place", ["s3", "local"])
def test_what_is_written_is_there_whole_under_its_key_and_may_be_written_again(bucket, tmp_path, place):
    where = Bucket(bucket) if place == "s3" else Folder(tmp_path / "new")
    for body in (BODY, OTHER * 200_000, b""):
        where.write("a/b/part", body)
        where.write("a/c", b"another")

        (entry,) = where.list("a/b/")
        assert (entry.key, entry.size) == ("a/b/part", len(body))
        assert b"".join(where.open(entry.key, entry.version).chunks) == body
    assert [entry.key for entry in where.list("")] == ["a/b/part", "a/c"]


def test_a_variants_own_files_are_in_the_bucket_and_without_one_in_the_local_folder(bucket, root):
    s3, local = Bucket(bucket), Folder(root)
    assert Sources(s3, local).primary is s3
    assert Sources(None, local).primary is local


def test_a_local_file_that_is_being_written_is_not_listed_and_leaves_the_old_one_in_place(root, monkeypatch):
    folder = Folder(root)
    listed = []

    def list_instead(descriptor: int) -> None:
        listed.extend((entry.key, entry.size) for entry in folder.list(""))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", list_instead)
    with pytest.raises(SourceError, match=r"activity\.csv could not be written: .*No space left"):
        folder.write(KEY, BODY * 3)

    assert listed == [(KEY, len(OTHER))]
    assert [path.read_bytes() for path in root.rglob("*") if path.is_file()] == [OTHER]


def test_a_local_file_that_cannot_be_written_is_told_with_its_place(root):
    with pytest.raises(SourceError, match=r"activity\.csv/part could not be written: .*File exists"):
        Folder(root).write(f"{KEY}/part", BODY)


@pytest.mark.parametrize(
    ("answer", "refused", "why"),
    [
        (error(403, "AccessDenied"), AccessDeniedError, "access to s3://any/a/b was denied .*needs s3:PutObject on it"),
        (error(404, "NoSuchBucket"), UsageError, "the bucket s3://any does not exist"),
        (error(503, "SlowDown"), SourceUnavailableError, "s3://any/a/b kept failing"),
    ],
    ids=["denied", "missing", "failing"],
)
def test_a_bucket_that_does_not_take_a_file_says_why(s3, answer, refused, why):
    s3.answer = answer
    with pytest.raises(refused, match=why):
        Bucket("any").write("a/b", BODY)


@pytest.mark.parametrize(
    ("spelled", "read"),
    [
        (["geography-XH"], "geography-XH"),
        (["geography-XH", "geography-xh"], "geography-xh"),
        (["Geography-xH", "geography-xi"], "Geography-xH"),
        (["geography-\N{KELVIN SIGN}h", "data"], "geography-xh"),  # a look-alike is another folder
    ],
)
def test_a_local_folder_is_a_variants_in_any_case_and_the_very_name_wins(tmp_path: Path, spelled: list[str], read: str):
    for name in spelled:
        (tmp_path / name / "company-B").mkdir(parents=True)
        (tmp_path / name / "company-B/rows.csv").write_bytes(name.encode())
    folder, key = Folder(tmp_path), "geography-xh/company-b/rows.csv"

    if read in spelled:
        assert b"".join(folder.open(key).chunks) == read.encode()
        assert [entry.key for entry in folder.list("geography-xh/company-b/")] == [key]
    else:
        assert folder.list("geography-xh/") == []
    folder.write("geography-xh/company-b/more.csv", b"")
    assert (tmp_path / read / ("company-B" if read in spelled else "company-b") / "more.csv").exists()
    assert set(folder.folders("")) == {*spelled, read}
