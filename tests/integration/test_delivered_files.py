"""At stake: whoever reads what is delivered sees each week whole and once, and none that is not published any more."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import dagster as dg
import polars as pl
import pytest
from pyarrow.parquet import ParquetFile

from churn.cli.main import main
from churn.data.erased import Erased
from churn.data.labels import Horizon
from churn.database.erasure import Erasures, erase_rows, read_erased
from churn.database.predictions import BatchInProgress, Challenge, PredictionStore
from churn.deployment.services import Deployment
from churn.storage.places import Bucket
from churn.variants import Variant
from churn.versions import CHALLENGER
from churn.workflows.deliver import Deliverer
from churn.workflows.erase import drop_old_weeks
from orchestration.assets.scoring import deliver_all
from tests.support import ROOT
from tests.support.batches import NO_ROWS, WEEK, record, scored
from tests.support.delivered import read_delivered, require_delivered
from tests.support.site import Run, Site

PREFIX = "delivered/"
US, BASE = Variant("us"), Variant()
BEFORE = WEEK - timedelta(weeks=1)


@pytest.fixture
def store(site: Site, monkeypatch: pytest.MonkeyPatch) -> PredictionStore:
    monkeypatch.setenv("CHURN_DELIVERY_PREFIX", f"s3://{site.bucket}/{PREFIX}")
    boto3.client("s3").put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Enabled"})
    return PredictionStore(site.login.set(database=site.churn))


def batch(n_rows: int, **changed: object) -> BatchInProgress:
    told = record(n_rows, **changed)
    return BatchInProgress([scored(n_rows)], lambda: (told, NO_ROWS))


def publish(store: PredictionStore, n_rows: int, **changed: object) -> None:
    told = record(n_rows, **changed)
    store.publish(told.variant, told.scored_week, batch(n_rows, **changed))


def keys(site: Site) -> dict[str, str]:
    listed = boto3.client("s3").list_objects_v2(Bucket=site.bucket, Prefix=PREFIX)
    return {item["Key"]: str(item["LastModified"]) for item in listed.get("Contents", [])}


def test_every_week_is_delivered_once_and_replaced_with_its_batch(
    site: Site, store: PredictionStore, run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("churn.database.published._BLOCK_ROWS", 16)
    publish(store, 2, scored_week=BEFORE)
    challenge = Challenge(lambda: batch(40, variant=BASE, role=CHALLENGER, model_version=2), 2, 5_000, "salt")
    store.publish(BASE, WEEK, batch(40, variant=BASE), challenge)

    said = run_main(main, "deliver", "--week", str(WEEK))
    uri = f"s3://{site.bucket}/{PREFIX}variant=base/week={WEEK}/batch-"
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith(f"base, week of {WEEK}: 40 accounts delivered, {uri}")
    assert run_main(main, "deliver", "--all-weeks", "--variant", "geography-us").out.count("accounts") == 1
    require_delivered(site.bucket, PREFIX, site.current())
    before = keys(site)
    (of_base,) = (key for key in before if "variant=base" in key and key.endswith(".parquet"))
    body = boto3.client("s3").get_object(Bucket=site.bucket, Key=of_base)["Body"].read()
    assert ParquetFile(io.BytesIO(body)).num_row_groups == 3, "rows are streamed in blocks"
    assert run_main(main, "deliver", "--all-weeks").out == "base: nothing is due\ngeography-us: nothing is due\n"
    assert keys(site) == before

    old = WEEK - timedelta(weeks=80)
    for is_killed, dropped in ((False, f"dropped 1 week: {old}; "), (True, "dropped 0 weeks; ")):
        publish(store, 2, scored_week=old)  # also where retention dropped the week since it was opened
        run_main(main, "deliver", "--week", str(old))
        if is_killed:
            database, today = site.server.set(database=site.churn), datetime.now(UTC).date()
            assert drop_old_weeks(database, today, n_weeks=60, horizon=Horizon()) == [old]
        said = run_main(main, "retain", "--weeks", "60")
        assert said.out.startswith(f"geography-us, week of {old}: withdrawn\n{dropped}"), said
        assert keys(site) == before

    publish(store, 4, scored_week=BEFORE)
    assert run_main(main, "deliver", "--week", str(BEFORE)).out.count("accounts") == 1
    require_delivered(site.bucket, PREFIX, site.current())
    page = (ROOT / "docs/how-to/read-delivered-files.md").read_text()
    (code,) = re.findall(r"<!-- read -->\n```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, pl.DataFrame] = {}
    exec(code.replace("BUCKET", site.bucket).replace("2026-11-23", str(BEFORE)), names)  # noqa: S102 our own page
    assert names["predictions"].equals(read_delivered(site.bucket, PREFIX)[US.key, BEFORE])


def test_what_others_do_in_the_middle_of_a_delivery_is_put_right_and_a_bucket_that_is_missing_is_named(
    site: Site, store: PredictionStore, deployment: Deployment
) -> None:
    class Unlocked(Erasures):
        @contextmanager
        def settled(self, *variants: Variant) -> Iterator[Erased]:
            with self._transaction() as connection:
                yield read_erased(connection, *variants)

    class Erasing(Bucket):
        n_erased = 0

        def upload(self, key: str, path: Path) -> None:
            if not self.n_erased:
                self.n_erased = len(
                    erase_rows(site.login.set(database=site.churn), "2", US.key, dry_run=False, withdraw=print)
                )
            super().upload(key, path)

    class Overtaken(Bucket):
        def swap(self, key: str, body: bytes, version: str | None) -> None:
            if version is None:
                self.write(key, b"{}")
                self.write(key.replace("manifests/", "").replace(".json", "/batch-1-0.parquet"), b"")
            super().swap(key, body, version)

    publish(store, 3)
    publish(store, 3, variant=BASE)

    Deliverer(deployment.database, Erasures(deployment.database), Overtaken(site.bucket), PREFIX).deliver(BASE)
    Deliverer(deployment.database, Unlocked(deployment.database), Erasing(site.bucket), PREFIX).deliver(US)

    require_delivered(site.bucket, PREFIX, site.current())
    assert site.current()["account_id"].to_list() == [1, 2, 3, 1, 3]
    settings = deployment.settings.model_copy(update={"churn_delivery_prefix": "s3://no-such-bucket-here/folder"})
    failed = deliver_all(dg.build_op_context(), replace(deployment, settings=settings), [US.key])
    assert "the bucket s3://no-such-bucket-here does not exist" in failed[US.key]
