"""At stake: training at a past date sees what the history says was known then; a fact dated too early is a leak.

And the history is the only memory of past extracts: what is lost or rewritten there is gone for good.
"""

import hashlib
import io
import threading
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import boto3
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn.data.activity import KINDS, UNDATED, check_activity
from churn.data.erased import Erased, tombstone
from churn.data.features import features
from churn.errors import AccessDeniedError, InputError, SourceError, UsageError
from churn.storage.history import COMPACTED_AT, FOLDER, ActivityHistory, Appended, max_parts, new_facts
from churn.storage.places import Bucket, Entry, Folder, Place
from churn.variants import Variant
from tests.support.simulated import simulate_activity

US, BASE = Variant("us"), Variant()
JAN, FEB, MAR, APR = (date(2025, month, 1) for month in (1, 2, 3, 4))


def at(*instant: int) -> datetime:
    return datetime(*instant, tzinfo=UTC)


FIRST, SECOND, THIRD = at(2025, 3, 10, 6), at(2025, 3, 17, 6, 30), at(2025, 4, 7, 6)
JAN_END, FEB_END = at(2025, 1, 31, 23, 59, 59, 999_999), at(2025, 2, 28, 23, 59, 59, 999_999)


def extract_of(*records: dict[str, object]) -> pl.DataFrame:
    """Checked rows, of account 1 in January if not told otherwise."""
    rows = [{"account_id": 1, "activity_month": JAN, "total_deposit": 5.0} | record for record in records]
    return check_activity(pl.from_dicts(rows, infer_schema_length=None)).rows


class Read(ActivityHistory):
    """What an append hands on is what the history says when it is read."""

    def append(self, variant: Variant, extract: pl.DataFrame, received_at: datetime) -> Appended:
        appended = super().append(variant, extract, received_at)
        if self.version(variant) is not None:
            assert appended.facts.equals(self.read(variant))
        return appended


def told(facts: pl.DataFrame) -> list[tuple[object, ...]]:
    return facts.select("account_id", "activity_month", "known_at", "total_deposit").rows()


@pytest.fixture(params=["s3", "local"])
def place(request, tmp_path) -> Place:
    return Bucket(request.getfixturevalue("bucket")) if request.param == "s3" else Folder(tmp_path / "local")


@pytest.fixture
def history(place) -> ActivityHistory:
    return Read(place)


@pytest.fixture
def local(tmp_path) -> ActivityHistory:
    return Read(Folder(tmp_path / "local"))


def test_months_of_the_first_extract_were_known_at_their_end_and_the_one_under_way_when_it_came(history):
    extract = extract_of({}, {"activity_month": FEB}, {"activity_month": MAR}, {"account_id": 2, "activity_month": FEB})

    assert history.append(US, extract, FIRST).n_added == 4

    assert told(history.read(US)) == [
        (1, JAN, JAN_END, 5.0),
        (1, FEB, FEB_END, 5.0),
        (1, MAR, FIRST, 5.0),
        (2, FEB, FEB_END, 5.0),
    ]


def test_facts_keep_every_column_and_the_contracts_types(history):
    activity = simulate_activity(n_accounts=40, first_month=date(2024, 6, 1), n_months=9, seed=1)
    extract = check_activity(activity.with_columns(pl.col("brand_id").cast(pl.Categorical), sessions=pl.lit(3))).rows

    n_added = history.append(US, extract, FIRST).n_added
    facts = history.read(US)

    assert facts.height == n_added == activity.select("account_id", "activity_month").n_unique()
    assert set(facts.columns) == {*activity.columns, "known_at", "sessions"}
    types = {"text": pl.String, "date": pl.Date, "instant": pl.Datetime("us", "UTC")}
    types |= dict.fromkeys(("account", "integer"), pl.Int64)
    for name, kind in KINDS.items():
        assert facts.schema[name] == types.get(kind, pl.Float64)
    last = activity.unique(["account_id", "activity_month"], keep="last", maintain_order=True)
    assert facts.select(activity.columns).equals(last.sort("account_id", "activity_month"))


def test_the_same_extract_again_adds_nothing_whenever_it_comes(history, place):
    # A month reported twice, as extracts have it.
    extract = extract_of({}, {"total_deposit": 6.0}, {"activity_month": MAR, "total_handle": None})
    assert history.append(US, extract, FIRST).n_added == 2
    before = history.read(US)
    version = history.version(US)

    for received_at in (FIRST, SECOND, THIRD, FIRST - timedelta(days=1)):
        added = history.append(US, extract, received_at).n_added
        # Of the month under way, an extract that came before the first one knew it earlier.
        assert added == (1 if received_at < FIRST else 0)
        if received_at >= FIRST:
            assert history.version(US) == version
            assert len(place.list("")) == 1
            assert history.read(US).equals(before)
    assert history.append(US, extract, FIRST - timedelta(days=1)).n_added == 0


def test_only_what_is_new_or_changed_is_added_and_was_known_when_it_came(history):
    history.append(US, extract_of({}, {"activity_month": FEB}), FIRST)

    corrected = extract_of({"total_deposit": 9.0}, {"activity_month": FEB}, {"activity_month": MAR})
    assert history.append(US, corrected, SECOND).n_added == 2

    assert told(history.read(US)) == [
        (1, JAN, JAN_END, 5.0),
        (1, JAN, SECOND, 9.0),
        (1, FEB, FEB_END, 5.0),
        (1, MAR, SECOND, 5.0),
    ]


def test_a_late_correction_reaches_only_as_of_dates_from_when_it_came(history):
    history.append(US, extract_of({}), FIRST)
    before = features(history.read(US), date(2025, 3, 16))

    history.append(US, extract_of({"total_deposit": 9.0}), SECOND)

    facts = history.read(US)
    assert features(facts, date(2025, 3, 16)).equals(before)
    deposits = [features(facts, day)["total_deposit"].to_list() for day in (date(2025, 1, 31), date(2025, 3, 17))]
    assert deposits == [[5.0], [9.0]]


def test_a_correction_taken_back_is_one_more_report(history):
    for deposit, received_at in ((5.0, FIRST), (9.0, SECOND), (5.0, THIRD)):
        assert history.append(US, extract_of({"total_deposit": deposit}), received_at).n_added == 1
    assert [row[2:] for row in told(history.read(US))] == [(JAN_END, 5.0), (SECOND, 9.0), (THIRD, 5.0)]


def test_what_disappears_from_a_later_extract_is_kept(history):
    history.append(US, extract_of({}, {"account_id": 2}), FIRST)
    assert history.append(US, extract_of({}), SECOND).n_added == 0
    assert history.read(US)["account_id"].to_list() == [1, 2]


def test_an_extract_that_says_when_things_became_known_is_believed(history):
    reports = extract_of(
        {"known_at": at(2025, 2, 9), "total_deposit": 7.0},
        {"known_at": at(2025, 2, 2)},
        {"known_at": at(2025, 2, 5)},
        {"activity_month": FEB, "known_at": at(2025, 3, 2)},
    )
    assert history.append(US, reports, FIRST).n_added == 3  # the report of 5 February changed nothing
    assert history.append(US, reports, SECOND).n_added == 0
    later = extract_of({"known_at": at(2025, 3, 12), "total_deposit": 8.0}, {"known_at": at(2025, 2, 3)})
    assert history.append(US, later, SECOND).n_added == 1

    assert told(history.read(US)) == [
        (1, JAN, at(2025, 2, 2), 5.0),
        (1, JAN, at(2025, 2, 9), 7.0),
        (1, JAN, at(2025, 3, 12), 8.0),
        (1, FEB, at(2025, 3, 2), 5.0),
    ]


def test_a_report_that_changed_but_not_its_known_at_was_known_when_the_change_came(history):
    known_at = at(2025, 2, 2)
    history.append(US, extract_of({"known_at": known_at}), FIRST)
    changed = extract_of({"known_at": known_at, "total_deposit": 9.0})

    assert history.append(US, changed, SECOND).n_added == 1
    assert history.append(US, changed, THIRD).n_added == 0

    assert told(history.read(US)) == [(1, JAN, known_at, 5.0), (1, JAN, SECOND, 9.0)]


def test_a_report_that_changed_has_nothing_to_say_where_a_later_one_stands_beside_it(history):
    first, second = {"known_at": at(2025, 2, 2)}, {"known_at": at(2025, 2, 9), "total_deposit": 7.0}
    history.append(US, extract_of(first, second), FIRST)

    assert history.append(US, extract_of(first | {"total_deposit": 1.0}, second), SECOND).n_added == 0
    assert [row[3] for row in told(history.read(US))] == [5.0, 7.0]


def test_a_change_that_comes_at_the_same_instant_counts_after_what_it_changes(history):
    for deposit in (5.0, 9.0, 2.0, 9.0):
        assert history.append(US, extract_of({"activity_month": MAR, "total_deposit": deposit}), FIRST).n_added == 1
    assert history.append(US, extract_of({"activity_month": MAR, "total_deposit": 9.0}), FIRST).n_added == 0
    assert features(history.read(US), date(2025, 3, 10))["total_deposit"].to_list() == [9.0]


def test_columns_that_come_later_are_kept_and_those_that_go_say_nothing(history):
    history.append(US, extract_of({}, {"account_id": 2}), FIRST)
    with_sessions = extract_of({"sessions": 3, "tier": "gold"}, {"account_id": 2})

    assert history.append(US, with_sessions, SECOND).n_added == 1
    assert history.append(US, extract_of({}, {"account_id": 2}), THIRD).n_added == 0

    known = features(history.read(US), THIRD.date())
    assert known.select("account_id", "sessions", "tier").rows() == [(1, 3, "gold"), (2, None, None)]


def test_a_column_whose_type_cannot_be_reconciled_is_refused_with_its_name(history):
    history.append(US, extract_of({"visits": "two"}), FIRST)
    with pytest.raises(
        InputError, match=r"columns changed their type .*'visits': \['List\(Int64\)', 'String'\].*; write"
    ):
        history.append(US, extract_of({"visits": [1, 2]}), SECOND)


@pytest.mark.parametrize("variant", [BASE, US, Variant("eu", "clientb")], ids=str)
def test_each_variant_has_its_own_history_below_its_prefix(history, place, variant):
    others = {BASE, US, Variant("eu", "clientb"), Variant(company="clientb")} - {variant}
    for i, other in enumerate(others):
        history.append(other, extract_of({"account_id": 100 + i}), FIRST)

    history.append(variant, extract_of({}), FIRST)

    assert history.read(variant)["account_id"].to_list() == [1]
    (part,) = place.list(variant.prefix + FOLDER)
    assert part.key.startswith(f"{variant.prefix}history/activity/20250310T060000.000000Z-00000-")


def test_nothing_to_add_writes_nothing(history, place):
    assert history.append(US, extract_of({}).clear(), FIRST).n_added == 0
    assert place.list("") == []


def test_a_variant_without_a_history_is_told_where_there_should_be_one(history):
    history.append(BASE, extract_of({}), FIRST)
    assert history.version(US) is None
    with pytest.raises(SourceError, match=r"geography-us/history/activity/? has no activity; append an extract"):
        history.read(US)


def test_the_version_changes_when_a_part_is_added_and_only_then(history):
    history.append(US, extract_of({}), FIRST)
    first = history.version(US)
    history.append(US, extract_of({}), SECOND)
    history.append(BASE, extract_of({}), SECOND)
    assert history.version(US) == first
    history.append(US, extract_of({}, {"account_id": 2}), SECOND)
    assert history.version(US) not in (first, None)


def overwrite(place: Place, key: str, body: bytes) -> None:
    if isinstance(place, Folder):
        (place.root / key).write_bytes(body)
    else:
        boto3.client("s3").put_object(Bucket=place.name, Key=key, Body=body)


@pytest.mark.parametrize(
    "damage",
    [lambda body: body[:-9], lambda body: body[:40] + b"\0" + body[41:], lambda body: b"", lambda body: body * 2],
    ids=["truncated", "changed", "emptied", "doubled"],
)
def test_a_damaged_part_is_named_and_nothing_is_read_or_added_around_it(history, place, damage):
    history.append(US, extract_of({}), FIRST)
    history.append(US, extract_of({"total_deposit": 9.0}), SECOND)
    entry = place.list("geography-us/")[0]
    overwrite(place, entry.key, damage(b"".join(place.open(entry.key, entry.version).chunks)))

    for use in (lambda: history.read(US), lambda: history.append(US, extract_of({"account_id": 3}), THIRD)):
        with pytest.raises(InputError, match=f"{entry.key} is damaged: its content does not match the SHA-256"):
            use()
    assert len(place.list("")) == 2


def test_a_part_whose_name_is_right_and_content_is_no_parquet_is_named(local):
    body = b"PAR1 is how Parquet begins PAR1"
    local.place.write(f"{FOLDER}20250310T060000.000000Z-00000-{hashlib.sha256(body).hexdigest()}.parquet", body)
    with pytest.raises(InputError, match=r"-00000-[0-9a-f]+\.parquet cannot be read as Parquet"):
        local.read(BASE)


def test_files_that_are_no_parts_are_let_be(history, place):
    history.append(US, extract_of({}), FIRST)
    for name in ("README.md", "activity.parquet", "20250310T060000.000000Z-00000-abc.parquet", "old/part.parquet"):
        place.write(f"{US.prefix}{FOLDER}{name}", b"not ours")
    assert history.read(US).height == 1


def test_times_of_any_zone_are_instants_and_none_is_refused(local):
    march = extract_of({"activity_month": MAR})
    local.append(US, march, datetime(2025, 3, 10, 7, tzinfo=ZoneInfo("Europe/Rome")))
    assert local.read(US)["known_at"].to_list() == [FIRST]
    assert local.place.list("geography-us/")[0].key.startswith("geography-us/history/activity/20250310T060000")
    with pytest.raises(UsageError, match="received_at 2025-03-10 06:00:00 has no time zone"):
        local.append(US, march, FIRST.replace(tzinfo=None))


def test_rows_that_are_encoded_already_are_no_activity(local):
    with pytest.raises(InputError, match="a history needs raw activity, with account_id and activity_month"):
        local.append(US, pl.DataFrame({"account_id": [1], "brand_id_OH": [1.0]}), FIRST)


class Reversed(Folder):
    """A place that lists its files in no order one may count on."""

    def list(self, prefix: str) -> list[Entry]:
        return super().list(prefix)[::-1]


def test_the_order_in_which_parts_are_listed_does_not_matter(local):
    for deposit, received_at in ((5.0, FIRST), (9.0, SECOND), (4.0, SECOND), (5.0, THIRD)):
        local.append(US, extract_of({"total_deposit": deposit}, {"account_id": 2}), received_at)
    assert ActivityHistory(Reversed(local.place.root)).read(US).equals(local.read(US))
    assert ActivityHistory(Reversed(local.place.root)).version(US) == local.version(US)


def test_an_extract_that_comes_after_a_later_one_does_not_speak_for_later_dates(history):
    for deposit, received_at in ((5.0, FIRST), (9.0, THIRD), (7.0, SECOND)):
        history.append(US, extract_of({"activity_month": MAR, "total_deposit": deposit}), received_at)

    by_day = [features(history.read(US), instant.date())["total_deposit"].item() for instant in (FIRST, SECOND, THIRD)]

    assert by_day == [5.0, 7.0, 9.0]
    assert history.append(US, extract_of({"activity_month": MAR, "total_deposit": 7.0}), SECOND).n_added == 0


class AppendedMeanwhile(Folder):
    """Another process appends after this one has read what there is, and before it writes."""

    def __init__(self, root, extract: pl.DataFrame) -> None:
        super().__init__(root)
        self.extract = extract

    def write(self, key: str, body: bytes) -> None:
        ActivityHistory(Folder(self.root)).append(US, self.extract, FIRST + timedelta(hours=1))
        super().write(key, body)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_processes_that_append_at_once_neither_loses_anything(tmp_path, is_first):
    folder = Folder(tmp_path)
    if not is_first:
        ActivityHistory(folder).append(US, extract_of({"account_id": 9}), FIRST - timedelta(days=1))
    theirs = extract_of({}, {"account_id": 3, "activity_month": MAR})
    ours = extract_of({}, {"account_id": 2, "activity_month": MAR})

    ActivityHistory(AppendedMeanwhile(tmp_path, theirs)).append(US, ours, FIRST)

    facts = ActivityHistory(folder).read(US)
    assert set(features(facts, APR)["account_id"]) - {9} == {1, 2, 3}
    assert features(facts, APR)["total_deposit"].to_list() == [5.0] * (3 if is_first else 4)
    for extract in (theirs, ours):
        assert ActivityHistory(folder).append(US, extract, SECOND).n_added == 0


def test_many_that_append_at_once_lose_nothing(history, place):
    def append(account: int) -> None:
        ActivityHistory(place).append(US, extract_of({"account_id": account}), FIRST)

    threads = [threading.Thread(target=append, args=(account,)) for account in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(history.read(US)["account_id"]) == set(range(1, 9))


def week(number: int) -> tuple[pl.DataFrame, datetime]:
    """An extract that corrects account 1, and brings another."""
    received_at = FIRST + timedelta(weeks=number)
    return extract_of({"total_deposit": float(number)}, {"account_id": 10 + number}), received_at


def parts_of(place: Place) -> list[str]:
    return sorted(entry.key for entry in place.list(US.prefix + FOLDER))


def test_months_of_parts_are_folded_into_few_and_every_day_looks_as_before(history, place):
    facts: pl.DataFrame | None = None
    n_parts = set()
    for number in range(20):
        extract, received_at = week(number)
        facts = appended(facts, extract, received_at)
        assert history.append(US, extract, received_at).n_added == 2
        n_parts.add(len(parts_of(place)))

    assert max(n_parts) <= max(COMPACTED_AT)
    assert len(n_parts) > 1
    assert facts is not None
    assert told(history.read(US)) == sorted(told(facts), key=lambda fact: fact[:3])
    for day in (FIRST + timedelta(days=days) for days in range(0, 150, 25)):
        assert features(history.read(US), day.date()).equals(features(facts, day.date()))


def test_histories_of_a_fleet_are_not_folded_in_one_week(tmp_path):
    variants = [Variant(company=f"c{number}") for number in range(12)]
    history = ActivityHistory(Folder(tmp_path))
    folded_in: dict[Variant, int] = {}
    for number in range(max(COMPACTED_AT) + 1):
        for variant in variants:
            history.append(variant, *week(number))
            if number and len(history.place.list(variant.prefix)) == 1:
                folded_in.setdefault(variant, number)

    assert len(folded_in) == len(variants)
    assert len(set(folded_in.values())) > 1


def test_compaction_changes_no_date_of_the_first_extract(tmp_path):
    history = ActivityHistory(Folder(tmp_path), delay=timedelta(days=20))
    months = [date(2025, month, 1) for month in range(1, 5)]
    dated = []
    for number in range(2 * max(COMPACTED_AT)):
        extract = pl.DataFrame(
            {"account_id": [1, 1, 1, 1, 100 + number], "activity_month": [*months, months[-1]], "total_deposit": 1.0}
        )
        history.append(US, extract, datetime(2025, 5, 10, 6, tzinfo=UTC) + timedelta(weeks=number))
        dated.append(told(history.read(US).filter(pl.col("account_id") == 1)))

    assert dated == [dated[0]] * len(dated)
    assert len(parts_of(history.place)) < len(dated)


class Listed(Folder):
    """Somebody compacts the history just after it was listed, once."""

    others: tuple[pl.DataFrame, datetime] | None = None

    def list(self, prefix: str) -> list[Entry]:
        listed = super().list(prefix)
        if self.others is not None:
            others, self.others = self.others, None
            ActivityHistory(Folder(self.root)).append(US, *others)
        return listed


def full(root: Path) -> int:
    """Append until the next part compacts all; returns the number of the next week."""
    history = ActivityHistory(Folder(root))
    number = 0
    while True:
        history.append(US, *week(number))
        number += 1
        if len(parts_of(history.place)) == max_parts(US):
            return number


@pytest.mark.parametrize("work", ["read", "append"])
def test_who_reads_while_the_parts_are_folded_misses_nothing(tmp_path, work):
    number = full(tmp_path)
    place = Listed(tmp_path)
    place.others = week(number)

    if work == "read":
        facts = ActivityHistory(place).read(US)
    else:
        facts = ActivityHistory(place).append(US, *week(number + 1)).facts

    assert place.others is None
    last = number + (work == "append")
    assert set(facts["account_id"]) == {1, *range(10, 11 + last)}
    assert facts.equals(ActivityHistory(Folder(tmp_path)).read(US))


class NotToBeRemoved(Folder):
    def delete(self, key: str) -> None:
        raise AccessDeniedError(f"{key} may not be removed")


def test_parts_that_may_not_be_removed_are_told_of_and_count_once(tmp_path, caplog):
    number = full(tmp_path)
    history = ActivityHistory(NotToBeRemoved(tmp_path))

    for later in range(number, number + 3):
        history.append(US, *week(later))

    assert "us: cannot compact the activity history (needs s3:DeleteObject); reads will slow down" in caplog.text
    expected = Folder(tmp_path / "other")
    for every in range(number + 3):
        ActivityHistory(expected).append(US, *week(every))
    assert history.append(US, *week(number + 2)).n_added == 0, "doubles say the same"
    assert set(told(history.read(US))) == set(told(ActivityHistory(expected).read(US)))
    assert len(parts_of(Folder(tmp_path))) > max_parts(US)
    ActivityHistory(Folder(tmp_path)).append(US, *week(number + 3))
    ActivityHistory(expected).append(US, *week(number + 3))
    assert told(ActivityHistory(Folder(tmp_path)).read(US)) == told(ActivityHistory(expected).read(US))
    assert len(parts_of(Folder(tmp_path))) <= max_parts(US)


class Killed(BaseException):
    """The process dies."""


class KilledAtDelete(Folder):
    """Dies at the n-th deletion."""

    n_left = 0

    def delete(self, key: str) -> None:
        if not self.n_left:
            raise Killed
        self.n_left -= 1
        super().delete(key)


@pytest.mark.parametrize("n_deleted", [0, 1, 2, 3])
def test_a_compaction_that_is_killed_doubles_no_fact(tmp_path, n_deleted):
    number = full(tmp_path)
    place = KilledAtDelete(tmp_path)
    place.n_left = n_deleted

    with pytest.raises(Killed):
        ActivityHistory(place).append(US, *week(number))

    after = ActivityHistory(Folder(tmp_path)).read(US)
    assert len(parts_of(Folder(tmp_path))) == max_parts(US) + 1 - n_deleted
    expected = ActivityHistory(Folder(tmp_path / "whole"))
    for every in range(number + 1):
        expected.append(US, *week(every))
    assert told(after) == told(expected.read(US))


def test_a_part_that_cannot_be_read_back_deletes_nothing(tmp_path):
    number = full(tmp_path)

    class Damaging(Folder):
        def write(self, key: str, body: bytes) -> None:
            super().write(key, body[:-1])

    with pytest.raises(InputError, match="does not match the SHA-256"):
        ActivityHistory(Damaging(tmp_path)).append(US, *week(number))

    assert len(parts_of(Folder(tmp_path))) == max_parts(US)
    ActivityHistory(Folder(tmp_path)).read(US)


def test_an_erasure_leaves_replaced_parts_replaced(tmp_path):
    number = full(tmp_path)
    history = ActivityHistory(NotToBeRemoved(tmp_path))
    history.append(US, *week(number))
    salt = bytes(range(32))

    n_removed = ActivityHistory(Folder(tmp_path)).erase(US, Erased(salt, frozenset([tombstone(salt, 11)]), 1))

    read = ActivityHistory(Folder(tmp_path)).read(US)
    assert n_removed >= 2
    assert set(read["account_id"]) == {1, 10, *range(12, 11 + number)}
    assert len(told(read)) == len(set(told(read)))


def test_an_account_that_was_erased_does_not_stay_in_what_is_folded(tmp_path):
    number = full(tmp_path)
    salt = bytes(range(32))
    erased = Erased(salt, frozenset([tombstone(salt, 11)]), 1)

    appended_now = ActivityHistory(Folder(tmp_path), lambda _: nullcontext(erased)).append(US, *week(number))

    read = ActivityHistory(Folder(tmp_path)).read(US)
    assert set(read["account_id"]) == {1, 10, *range(12, 11 + number)}
    assert appended_now.facts.equals(read)


months = st.sampled_from([JAN, FEB, MAR, APR])
rows = st.fixed_dictionaries(
    {"account_id": st.integers(1, 3), "activity_month": months, "total_deposit": st.sampled_from([0.0, 1.0, 2.0])}
)
extracts = st.lists(rows, min_size=1, max_size=8).map(lambda records: extract_of(*records))


def appended(held: pl.DataFrame | None, extract: pl.DataFrame, received_at: datetime) -> pl.DataFrame:
    added = new_facts(extract, held, received_at)
    return added if held is None else pl.concat([held, added])


@settings(deadline=None, max_examples=30)
@given(extracts=st.lists(extracts, min_size=1, max_size=4))
def test_the_history_says_of_each_day_what_the_extracts_until_then_said_and_never_changes_its_mind(extracts):
    days = [FIRST + timedelta(days=7 * i) for i in range(len(extracts))]
    held: pl.DataFrame | None = None
    said: dict[tuple[int, date], float] = {}
    then: list[pl.DataFrame] = []
    for extract, received_at in zip(extracts, days, strict=True):
        held = appended(held, extract, received_at)
        assert new_facts(extract, held, received_at + timedelta(hours=1)).is_empty()
        said |= {row[:2]: row[2] for row in extract.select("account_id", "activity_month", "total_deposit").rows()}
        latest = held.sort("known_at", maintain_order=True)
        assert {row[:2]: row[3] for row in told(latest)} == said
        then.append(features(held, received_at.date()))
    for received_at, before in zip(days, then, strict=True):
        assert features(held, received_at.date()).equals(before)


@settings(deadline=None, max_examples=30)
@given(extract=extracts, days=st.lists(st.integers(0, 60), min_size=8, max_size=8), deposit=st.sampled_from([1.0, 3.0]))
def test_extracts_with_their_own_known_at_add_nothing_twice_and_change_nothing_before_they_came(extract, days, deposit):
    known_at = [at(2025, 1, 5) + timedelta(days=n) for n in days[: extract.height]]
    dated = extract.with_columns(known_at=pl.Series(known_at, dtype=pl.Datetime("us", "UTC")))
    held = appended(None, dated, FIRST)
    assert new_facts(dated, held, SECOND).is_empty()

    changed = held.with_columns(total_deposit=pl.lit(deposit))
    more = appended(held, changed, SECOND)

    assert new_facts(changed, more, THIRD).is_empty()
    for as_of in (date(2025, 1, 20), date(2025, 2, 10), SECOND.date() - timedelta(days=1)):
        assert features(more, as_of).equals(features(held, as_of))


def test_parts_are_parquet_that_others_can_read(local):
    local.append(US, extract_of({}), FIRST)
    (entry,) = local.place.list("geography-us/")
    assert pl.read_parquet(io.BytesIO(b"".join(local.place.open(entry.key, entry.version).chunks))).height == 1


def checked_of(*records: dict[str, object]) -> pl.DataFrame:
    """Rows as they are ingested, of account 1 in January; a negative deposit breaks the contract."""
    rows = [{"account_id": 1, "activity_month": JAN, "total_deposit": 5.0} | record for record in records]
    return check_activity(pl.from_dicts(rows, infer_schema_length=None)).with_quarantined()


OTHER, BROKEN, UNREADABLE = {"account_id": 2}, {"total_deposit": -1.0}, {"activity_month": "January"}
EARLY = {"known_at": at(2025, 2, 3)}


@pytest.mark.parametrize(
    ("extracts", "facts", "quarantined"),
    [
        ([[{}, OTHER | BROKEN]], [(1, JAN_END)], [(2, JAN, FIRST)]),
        ([[OTHER, BROKEN], [OTHER, BROKEN]], [(2, JAN_END)], [(1, JAN, FIRST)]),
        ([[OTHER, BROKEN], [OTHER, {}]], [(1, SECOND), (2, JAN_END)], [(1, JAN, FIRST)]),
        ([[OTHER, {}], [OTHER, BROKEN]], [(1, JAN_END), (2, JAN_END)], [(1, JAN, SECOND)]),
        ([[OTHER, {}], [OTHER, BROKEN], [OTHER, {}]], [(1, JAN_END), (1, THIRD), (2, JAN_END)], [(1, JAN, SECOND)]),
        ([[OTHER | EARLY, BROKEN | EARLY], [EARLY]], [(1, SECOND), (2, EARLY["known_at"])], [(1, JAN, FIRST)]),
        ([[OTHER, {"account_id": 12.5}]], [(2, JAN_END)], []),
        ([[OTHER | {"activity_month": "2025-01-01"}, UNREADABLE]], [(2, JAN_END)], [(1, UNDATED, FIRST)]),
        (
            [[OTHER | {"activity_month": "2025-01-01"}, {"activity_month": "2025-01-09"}]],
            [(2, JAN_END)],
            [(1, JAN, FIRST)],
        ),
    ],
    ids=["once", "twice", "corrected", "no longer readable", "and again", "own known_at", "no id", "no month", "a day"],
)
def test_a_quarantined_row_is_no_fact_and_is_remembered_until_a_report_takes_its_place(
    local, extracts, facts, quarantined
):
    for records, received_at in zip(extracts, (FIRST, SECOND, THIRD), strict=False):
        for n_added_again in (None, 0):
            found = local.append(US, checked_of(*records), received_at)
            assert n_added_again is None or found.n_added == 0

    for known in (found, local.open(US)):
        assert known.facts.select("account_id", "known_at").rows() == facts
        assert known.quarantined.rows() == quarantined
        assert "is_quarantined" not in known.facts.columns


def test_quarantined_rows_survive_compaction_and_are_erased_with_their_account(tmp_path):
    erased: list[Erased] = [Erased()]
    history = ActivityHistory(Folder(tmp_path), lambda _: nullcontext(erased[0]))
    history.append(US, checked_of(OTHER, BROKEN, {"account_id": 3, "total_deposit": -1.0}), FIRST)
    for i in range(max_parts(US)):
        history.append(US, checked_of(OTHER | {"total_deposit": float(i)}), SECOND + timedelta(days=i))
    assert history.open(US).quarantined["account_id"].to_list() == [1, 3]

    erased[0] = Erased(bytes(32), frozenset([tombstone(bytes(32), 3)]))
    assert history.erase(US, erased[0]) == 1

    assert history.open(US).quarantined["account_id"].to_list() == [1]
