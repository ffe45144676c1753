"""At stake: analysts read one batch per variant and week, whole. Whatever is published twice, at once, wrongly or is
killed on the way, a reader must see the old batch or the new one, and never half, both or neither.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from churn.database.connection import create_engine
from churn.database.copy_format import ScoredRows
from churn.database.predictions import BatchInProgress, BatchRecord, PredictionStore, read_current
from churn.errors import DatabaseUnavailableError, StoreError
from churn.variants import Variant
from tests.support.batches import NO_ROWS, WEEK, record, scored
from tests.support.site import Site, run_sql


@pytest.fixture
def store(site: Site) -> PredictionStore:
    return PredictionStore(site.login.set(database=site.churn))


def publish(store: PredictionStore, record: BatchRecord, rows: Iterable[ScoredRows], quarantined: pl.DataFrame) -> int:
    return store.publish(record.variant, record.scored_week, BatchInProgress(rows, lambda: (record, quarantined)))[0][0]


def batches(site: Site) -> list[tuple[int, bool]]:
    return [tuple(row) for row in site.rows(site.churn, "SELECT batch_id, is_current FROM scoring_batches ORDER BY 1")]  # type: ignore[misc]


def n_stored(site: Site) -> int:
    return int(site.rows(site.churn, "SELECT count(*) FROM churn_predictions")[0][0])


def test_what_is_published_is_what_is_read(site: Site, store: PredictionStore) -> None:
    accounts = np.array([-(2**63), -1, 0, 7, 2**63 - 1], dtype=np.int64)
    probabilities = np.array([0.0, 1.0, 0.5, np.float32(1e-45), np.nextafter(np.float32(1), np.float32(0))], "f4")

    batch_id = publish(
        store,
        record(5),
        [ScoredRows(accounts[:2], probabilities[:2]), ScoredRows(accounts[2:], probabilities[2:])],
        NO_ROWS,
    )

    url = site.login.set(database=site.churn)
    held = read_current(url, "SELECT * FROM churn_predictions_current WHERE variant = :v", v="geography-us")
    held = held.sort("account_id")
    assert held["account_id"].to_list() == accounts.tolist()
    assert held["churn_probability"].cast(pl.Float32).to_numpy().tobytes() == probabilities.tobytes()
    assert set(held["batch_id"]) == {batch_id}
    assert set(held["scored_week"]) == {WEEK}
    assert held.select("geography", "company", "model_version", "source", "is_fallback", "is_foreign_data").unique(
        maintain_order=True
    ).rows() == [("us", None, 1, "s3", False, False)]
    assert store.measure(batch_id, WEEK) == (5, 0, 1)
    assert site.rows(site.churn, "SELECT unknown_levels FROM scoring_batches") == [({"brand_id": {"XX": 2}},)]


def test_publishing_again_leaves_one_current_prediction_per_account_and_keeps_the_older_batch(
    site: Site, store: PredictionStore
) -> None:
    first = publish(store, record(3), [scored(3, 0.25)], NO_ROWS)
    second = publish(store, record(2), [scored(2, 0.75)], NO_ROWS)

    assert site.current()["account_id"].to_list() == [1, 2]
    assert set(site.current()["churn_probability"]) == {0.75}
    assert batches(site) == [(first, False), (second, True)]
    assert n_stored(site) == 5


def test_a_batch_is_one_transaction_of_five_statements_beside_copy(site: Site, store: PredictionStore) -> None:
    publish(store, record(1), [scored(1)], NO_ROWS)  # opens the week
    row = {"row_number": 7, "account_id": 2, "account_key": None, "rules": ["a", "b"], "row": '{"x": "\\u0000"}'}
    quarantined = pl.concat([NO_ROWS, pl.DataFrame([row])], how="diagonal_relaxed")
    sent: list[str] = []
    listeners = {
        "begin": lambda _: sent.append("BEGIN"),
        "before_cursor_execute": lambda _, __, statement, *___: sent.append(" ".join(statement.split())[:25]),
        "commit": lambda _: sent.append("COMMIT"),
    }
    for name, listener in listeners.items():
        sa.event.listen(sa.Engine, name, listener)
    try:
        batch = BatchInProgress([scored(2)], lambda: (record(2), quarantined), reference='{"bins": []}')
        store.publish(Variant("us"), WEEK, batch, outdated=lambda _, source: None if source == "s3" else "")
    finally:
        for name, listener in listeners.items():
            sa.event.remove(sa.Engine, name, listener)

    assert [statement.split()[0] for statement in sent] == ["BEGIN", "SELECT", "WITH", "SELECT", "COMMIT"]
    query = "SELECT row_number, account_id, account_key, rules, row FROM quarantined_rows"
    assert site.rows(site.churn, query) == [(7, 2, None, ["a", "b"], {"x": "\ufffd"})]
    assert site.rows(site.churn, "SELECT profile FROM model_references") == [({"bins": []},)]


def test_variants_and_weeks_do_not_touch_each_other(site: Site, store: PredictionStore) -> None:
    publish(store, record(3), [scored(3, 0.25)], NO_ROWS)
    publish(store, record(2, scored_week=date(2026, 11, 9)), [scored(2, 0.5)], NO_ROWS)
    publish(store, record(1, variant=Variant(company="us")), [scored(1, 0.75)], NO_ROWS)

    counts = site.current().group_by("variant", "scored_week").len().sort("variant", "scored_week").rows()
    assert counts == [("company-us", WEEK, 1), ("geography-us", date(2026, 11, 9), 2), ("geography-us", WEEK, 3)]


@pytest.mark.parametrize("n_told", [2, 4])
def test_a_count_that_does_not_add_up_publishes_nothing(site: Site, store: PredictionStore, n_told: int) -> None:
    old = publish(store, record(1), [scored(1)], NO_ROWS)

    with pytest.raises(StoreError, match=f"3 rows of geography-us reached PostgreSQL and {n_told} were scored"):
        publish(store, record(n_told), [scored(3)], NO_ROWS)

    assert batches(site) == [(old, True)]
    assert n_stored(site) == 1


def test_a_batch_without_rows_replaces_nothing(site: Site, store: PredictionStore) -> None:
    old = publish(store, record(1), [scored(1)], NO_ROWS)

    with pytest.raises(StoreError, match="refusing to replace a batch with nothing"):
        publish(store, record(0), [], NO_ROWS)

    assert batches(site) == [(old, True)]


@pytest.mark.parametrize("probability", [np.nan, 1.5, -0.1, np.inf])
def test_the_database_itself_refuses_what_is_no_probability(
    site: Site, store: PredictionStore, probability: float
) -> None:
    old = publish(store, record(1), [scored(1)], NO_ROWS)

    with pytest.raises(StoreError, match="churn_probability"):
        publish(store, record(2), [scored(1), scored(1, probability, first_account=2)], NO_ROWS)

    assert batches(site) == [(old, True)]
    assert n_stored(site) == 1


def test_an_account_twice_in_a_batch_is_refused(site: Site, store: PredictionStore) -> None:
    with pytest.raises(StoreError, match="scored twice"):
        publish(store, record(2), [scored(1), scored(1)], NO_ROWS)

    assert (batches(site), n_stored(site)) == ([], 0)


def test_a_scored_week_that_is_not_a_monday_is_refused(site: Site, store: PredictionStore) -> None:
    with pytest.raises(StoreError, match="does not begin on a Monday"):
        publish(store, record(1, scored_week=date(2026, 11, 17)), [scored(1)], NO_ROWS)

    assert batches(site) == []


def test_a_fallback_without_its_reason_is_refused(site: Site, store: PredictionStore) -> None:
    with pytest.raises(StoreError, match="check constraint"):
        publish(store, record(1, source="local"), [scored(1)], NO_ROWS)

    publish(store, record(1, source="local", fallback_reason="S3 was down"), [scored(1)], NO_ROWS)
    assert site.current().select("is_fallback", "fallback_reason").rows() == [(True, "S3 was down")]


def test_an_error_in_the_middle_of_the_rows_publishes_nothing(site: Site, store: PredictionStore) -> None:
    old = publish(store, record(1), [scored(1)], NO_ROWS)

    def break_off() -> Iterator[ScoredRows]:
        yield scored(100_000)
        raise RuntimeError("the booster failed")

    with pytest.raises(Exception, match="the booster failed"):
        publish(store, record(100_001), break_off(), NO_ROWS)

    assert batches(site) == [(old, True)]
    assert n_stored(site) == 1


def test_concurrent_publishes_of_one_variant_and_week_leave_exactly_one_current(
    site: Site, store: PredictionStore
) -> None:
    start = threading.Barrier(6)

    def publish_one(i: int) -> int:
        start.wait(timeout=30)
        return publish(store, record(2_000), [scored(2_000, i / 10)], NO_ROWS)

    with ThreadPoolExecutor(6) as pool:
        published = list(pool.map(publish_one, range(6)))

    assert [batch for batch, is_current in batches(site) if is_current] == [max(published)]
    current = site.current()
    assert (current.height, current["account_id"].n_unique(), current["churn_probability"].n_unique()) == (
        2000,
        2000,
        1,
    )
    assert n_stored(site) == 12_000


def test_a_reader_sees_the_old_batch_until_the_new_one_is_whole(site: Site, store: PredictionStore) -> None:
    publish(store, record(10), [scored(10, 0.25)], NO_ROWS)
    seen: list[set[float]] = []

    def watched() -> Iterator[ScoredRows]:
        for i in range(4):
            yield scored(10_000, 0.75, first_account=1 + i * 10_000)
            seen.append(set(site.current()["churn_probability"]))

    publish(store, record(40_000), watched(), NO_ROWS)

    assert seen == [{0.25}] * 4
    assert set(site.current()["churn_probability"]) == {0.75}


def end_of_backend(site: Site) -> None:
    """End the connection that is publishing, as an administrator or a fail-over would."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid() "
        "AND query LIKE 'COPY%'"
    )
    assert run_sql(site.server, query, name=site.churn) == [(True,)]


def test_a_backend_killed_in_the_middle_of_its_rows_leaves_the_old_batch_current(
    site: Site, store: PredictionStore
) -> None:
    old = publish(store, record(1), [scored(1, 0.25)], NO_ROWS)

    def killed() -> Iterator[ScoredRows]:
        yield scored(100_000, 0.75)
        end_of_backend(site)
        for i in range(1, 20):
            yield scored(100_000, 0.75, first_account=1 + i * 100_000)

    with pytest.raises(DatabaseUnavailableError, match=site.churn):
        publish(store, record(2_000_000), killed(), NO_ROWS)

    assert batches(site) == [(old, True)]
    assert set(site.current()["churn_probability"]) == {0.25}
    # The lock went with the backend: the retry is not kept waiting.
    again = publish(store, record(2), [scored(2, 0.75)], NO_ROWS)
    assert batches(site) == [(old, False), (again, True)]


def test_a_database_that_is_gone_is_told_as_unavailable(tmp_path: Path, site: Site) -> None:
    nowhere = PredictionStore(site.login.set(database=site.churn, port=9))

    with pytest.raises(DatabaseUnavailableError, match="did not answer"):
        publish(nowhere, record(1), [scored(1)], NO_ROWS)


def test_quarantined_rows_are_kept_with_the_rules_they_broke(site: Site, store: PredictionStore) -> None:
    quarantined = pl.DataFrame(
        {
            "row_number": [3, 9],
            "account_id": [12, None],
            "activity_month": [None, None],
            "rules": [["total_deposit_negative", "brand_id_missing"], ["account_id_unreadable"]],
            "row": ['{"account_id":12,"note":"a % and a :colon \\u00e9"}', '{"account_id":"x\\"y"}'],
        },
        schema=NO_ROWS.schema,
    )

    batch = publish(store, record(1, n_rows_quarantined=2), [scored(1)], quarantined)

    held = site.rows(
        site.churn, "SELECT batch_id, row_number, account_id, rules, row FROM quarantined_rows ORDER BY row_number"
    )
    assert held == [
        (
            batch,
            3,
            12,
            ["total_deposit_negative", "brand_id_missing"],
            {"account_id": 12, "note": "a % and a :colon é"},
        ),
        (batch, 9, None, ["account_id_unreadable"], {"account_id": 'x"y'}),
    ]


def test_a_quarantined_row_that_json_cannot_hold_is_still_kept(site: Site, store: PredictionStore) -> None:
    quarantined = pl.DataFrame(
        {
            "row_number": [1],
            "account_id": [None],
            "activity_month": [None],
            "rules": [["account_id_unreadable"]],
            "row": ['{"account_id":"a\\u0000b","path":"c:\\\\u0000"}'],
        },
        schema=NO_ROWS.schema,
    )

    unknown = {"brand_id": {"O\0H": 1}}
    publish(store, record(1, n_rows_quarantined=1, unknown_levels=unknown), [scored(1)], quarantined)

    assert site.rows(site.churn, "SELECT row FROM quarantined_rows") == [({"account_id": "a�b", "path": "c:\\u0000"},)]
    assert site.rows(site.churn, "SELECT unknown_levels FROM scoring_batches") == [({"brand_id": {"O�H": 1}},)]


def test_a_week_is_opened_once_however_many_ask_at_once(site: Site) -> None:
    start = threading.Barrier(8)
    engine = create_engine(site.login.set(database=site.churn), role="churn_writer")

    def open_week(_: int) -> None:
        start.wait(timeout=30)
        with engine.begin() as connection:
            connection.execute(sa.text("SELECT open_week(:week)"), {"week": WEEK})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_week, range(8)))

    partitions = site.rows(
        site.churn, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'churn_predictions'::regclass"
    )
    assert partitions == [("churn_predictions_20261116",)]


def test_what_a_dagster_run_has_published_and_what_was_read_last_are_told(site: Site, store: PredictionStore) -> None:
    publish(store, record(1), [scored(1)], NO_ROWS)
    other = Variant(company="clienta")
    publish(store, record(1, variant=other, dagster_run_id="another", source_version="e1"), [scored(1)], NO_ROWS)
    publish(store, record(1, variant=other, dagster_run_id="third", source_version="e2"), [scored(1)], NO_ROWS)

    assert store.published_by(["dagster-run"], WEEK) == {"geography-us"}
    assert store.published_by(["dagster-run"], date(2026, 11, 9)) == set()
    assert store.published_by(["another"], WEEK) == set()  # its batch is no longer the current one
    uri = "s3://bucket/geography-us/data/churn/activity.parquet"
    assert store.latest_inputs() == {"geography-us": f"{uri}@etag", "company-clienta": f"{uri}@e2"}


def test_a_week_without_new_input_is_flagged_though_the_file_was_uploaded_again(
    site: Site, store: PredictionStore
) -> None:
    monday = datetime.combine(WEEK, time(), UTC)
    weeks = {WEEK - timedelta(weeks=2): False, WEEK - timedelta(weeks=1): False, WEEK: True}
    for week, uploaded in zip(weeks, (15, 8, 1), strict=True):  # days before the last one
        content = "2" * 64 if week < WEEK - timedelta(weeks=1) else "1" * 64
        batch = replace(
            record(1), scored_week=week, as_of=week, source_sha256=content,
            source_modified_at=monday - timedelta(days=uploaded),
        )  # fmt: skip
        publish(store, batch, [scored(1)], NO_ROWS)
    query = "SELECT scored_week, is_repeated_input FROM churn_predictions_by_role"
    assert dict(map(tuple, site.rows(site.churn, query))) == weeks


def test_a_batch_of_the_sample_is_flagged_in_any_of_its_forms(site: Site, store: PredictionStore) -> None:
    inputs = {
        "s3://bucket/data/churn/X_test_sample_2.json": True,
        "s3://bucket/geography-us/data/churn/X_test_sample_2.json": True,
        "s3://bucket/geography-us/data/churn/X_test_sample_2.json.gz": True,
        "s3://bucket/geography-us/data/churn/X_test_sample_2.json.zst": True,
        "s3://bucket/geography-us/data/churn/X_test_sample_2.json/part-0.parquet": True,
        "file:///srv/data/churn/X_test_sample_2.json": True,
        "s3://bucket/geography-us/data/churn/activity.parquet": False,
        "s3://X_test_sample_2.json-bucket/data/churn/activity.csv": False,
        "s3://bucket/history/geography-us/2026-10.parquet": False,
    }
    for uri, expected in inputs.items():
        publish(store, replace(record(1), source_uri=uri), [scored(1)], NO_ROWS)
        for view in ("current", "latest", "by_role"):
            query = f"SELECT source_uri, is_sample FROM churn_predictions_{view}"  # noqa: S608 our own names
            assert list(map(tuple, site.rows(site.churn, query))) == [(uri, expected)]

    assert dict(map(tuple, site.rows(site.churn, "SELECT source_uri, is_sample FROM scoring_batches"))) == inputs


def test_what_a_variant_was_scored_from_says_whether_it_had_activity(store: PredictionStore) -> None:
    us, simulated = Variant("us"), ["sha-of-the-bundle"]
    local = {"source": "local", "fallback_reason": "S3 is not configured"}
    cases = [
        ({"source_uri": "s3://b/geography-us/data/churn/X_test_sample_2.json"}, False),
        ({"source_uri": "file:///r/data/churn/activity.parquet", "source_variant": Variant(), **local}, False),
        (
            {"source_uri": "file:///r/geography-us/data/churn/activity.csv", "source_sha256": simulated[0], **local},
            False,
        ),
        ({"source_uri": "file:///r/geography-us/data/churn/activity.csv", **local}, True),
    ]
    for changed, has in cases:
        publish(store, replace(record(1), **changed), [scored(1)], NO_ROWS)
        assert store.had_activity(us, simulated) is has, changed
    assert store.had_activity(Variant("eu"), simulated) is False
