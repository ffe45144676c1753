"""From a file of input rows to chunks of rows to score. Pure.

In raw activity, which row is an account's is known only after the whole file was read. One pass checks every row and
keeps it packed, in some 30 bytes, and the chunks are made from that. Encoded rows need no such pass and are streamed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from churn.concurrency import in_threads
from churn.data import activity, features
from churn.data.account_ids import ACCOUNT_KEY, key_table
from churn.data.activity import CheckedRows
from churn.data.arrays import Flags, Floats, Ints, Longs
from churn.data.columns import Columns
from churn.data.erased import Erased
from churn.data.features import Encoding, Packed
from churn.data.formats import RowFile, open_rows
from churn.data.windows import IS_ACTIVE, KnownRows, Window, compute, windows_of
from churn.defaults import HORIZON_MONTHS
from churn.errors import InputError
from churn.weeks import at_risk_since, days_since_epoch, month_start, newest_whole_month

CHUNK_ROWS = 65_536  # small chunks cost more calls a row; larger ones only cost memory
_MOST_LEVELS = 20

Chunk = tuple[Longs, Packed]
"""Account ids, shape (n,), and their rows."""
_Checked = tuple[CheckedRows, Packed]


@dataclass
class RowCounts:
    """Counts of a file's rows; complete when all chunks were consumed."""

    n_read: int
    n_accounts: int  # rows to score, one per account
    n_later: int  # rows not known yet at the as-of date
    n_withheld: int  # accounts left out because their newest row was quarantined; an older one would be stale
    has_account_ids: bool
    quarantined: pl.DataFrame  # `row_number, account_id, activity_month, rules, row`
    unknown_levels: dict[str, dict[str, int]]  # `{source_column: {level: rows}}` of valid rows; the most frequent
    account_keys: pl.DataFrame | None = None  # see churn.data.account_ids.key_table
    n_erased: int = 0  # rows dropped because their account was erased
    n_short_windows: int = 0  # features over more months than the activity has
    own_columns: tuple[str, ...] = ()  # features that could be computed, and are columns of the file
    horizon_months: int = HORIZON_MONTHS
    first_month: date | None = None  # known at the as-of day, `None` of encoded rows; likewise `newest_month`
    newest_month: date | None = None
    n_newest: int | None = None  # rows of the newest month that was over by then; `None` of encoded rows


@dataclass(frozen=True)
class ScoringRows:
    """One row per account, ready for a model.

    ``chunks`` yields at least one chunk of 1 to ``CHUNK_ROWS`` rows; call it once. It raises ``QuarantineError``, after
    the last chunk at the latest, if more rows break the contract than the limit allows.
    """

    counts: RowCounts
    encoding: Encoding
    chunks: Callable[[], Iterator[Chunk]]


@dataclass(frozen=True)
class RowPlan:
    """How raw activity becomes a model's rows: what is packed of each row, and what is computed from several."""

    feature_names: tuple[str, ...]
    declared: Columns
    encoding: Encoding
    packed: Encoding  # of the file's rows: the features that follow from one row, and the columns of the windows
    of_row: tuple[Window, ...]  # the windows that follow from one row
    windows: tuple[Window, ...]  # the others, computed for all accounts at once

    def column(self, packed: Sequence[Packed], name: str) -> Floats:
        """Return a packed column of all rows; of activity, whether there is any."""
        values = np.concatenate([part.numbers[self.packed.columns.index(name)] for part in packed])
        return values == 1 if name == IS_ACTIVE else values

    def with_windows(self, chunks: Iterator[Chunk], accounts: Longs, computed: Floats) -> Iterator[Chunk]:
        """Replace the windows' columns by ``computed``, shape (n windows, n), of ``accounts`` in rising order."""
        places = {name: i for i, (name, _) in enumerate(self.packed.numbers)}
        places |= {window.name: len(places) + i for i, window in enumerate(self.windows)}
        order = [places[name] for name, _ in self.encoding.numbers]
        for account_ids, packed in chunks:
            of_row, places_of = packed.numbers, np.searchsorted(accounts, account_ids)
            numbers = [of_row[i] if i < len(of_row) else computed[i - len(of_row), places_of] for i in order]
            yield account_ids, replace(packed, numbers=np.stack(numbers))


def plan_file(feature_names: tuple[str, ...], columns: Sequence[str], declared: Columns) -> RowPlan | None:
    """Plan the rows of a file; ``None`` if they are encoded.

    Raises ``InputError`` naming the features that come from no column, or that look like windows and are none.
    """
    if not activity.is_activity(columns):
        activity.require_features(columns, feature_names)
        return None
    windows = windows_of(feature_names, columns)
    # Derived of each row; no window is.
    derived = [features.DERIVED] if "ftd_date" in columns and features.DERIVED not in columns else []
    encoding = features.plan_encoding(feature_names, [*columns, *derived], declared.categories)
    over_months = tuple(window for window in windows if not window.is_of_row)
    names = {window.name for window in over_months}
    kept = [name for name, _ in encoding.numbers if name not in names]
    numbers = dict.fromkeys([*kept, *(window.column for window in over_months)])
    packed = replace(encoding, numbers=tuple((name, 0) for name in numbers), windows=())
    of_row = tuple(window for window in windows if window.is_of_row)
    return RowPlan(feature_names, declared, encoding, packed, of_row, over_months)


def prepare(
    path: Path,
    feature_names: tuple[str, ...],
    as_of: date,
    max_quarantine_share: float,
    origin: str,
    *,
    horizon_months: int = HORIZON_MONTHS,
    erased: Erased | None = None,
    declared: Columns | None = None,
) -> ScoringRows:
    """Open a file of raw activity or encoded rows, named ``origin`` in errors, and find each account's row.

    The rows of ``erased`` accounts are dropped and counted.

    Raises:
        InputError: If the file has no rows, they lack the model's features, or no account is known.
        QuarantineError: If more than ``max_quarantine_share`` of the rows break the contract.
    """
    file = open_rows(path, feature_names)
    erased, declared = erased or Erased(), declared or Columns()
    if (plan := plan_file(feature_names, file.columns, declared)) is None:
        return _open_encoded(file, feature_names, max_quarantine_share, erased, declared)
    return _read_activity(file, plan, as_of, max_quarantine_share, origin, horizon_months=horizon_months, erased=erased)


def _read_activity(
    file: RowFile, plan: RowPlan, as_of: date, max_share: float, origin: str, *, horizon_months: int, erased: Erased
) -> ScoringRows:
    money, max_money = plan.declared.activity, plan.declared.max_money
    numbers = [*(name for name, _ in plan.packed.numbers), *money]
    dates = [window.column for window in plan.of_row]
    needs_activity = any(window.column == IS_ACTIVE for window in plan.windows)

    def check(frame: pl.DataFrame, first_row: int) -> tuple[CheckedRows, Packed]:
        checked = activity.check_activity(frame, numbers, dates=dates, first_row=first_row, max_money=max_money)
        checked = _without(erased, checked)
        rows = features.derive(checked.rows, as_of, plan.of_row)
        columns = checked.rows.columns
        keys = checked.rows.select(*features.key_columns(columns), *({ACCOUNT_KEY} & {*columns}))
        if needs_activity or not set(money).isdisjoint(columns):
            keys = keys.with_columns(features.is_active(checked.rows, money))
        if needs_activity:
            rows = rows.with_columns(keys["is_active"].alias(IS_ACTIVE))
        return replace(checked, rows=keys), features.pack(rows, plan.packed)

    needed = {*activity.KINDS, *plan.packed.columns, *dates, *money}
    columns = [name for name in file.columns if name in needed]
    parts, packed = zip(*_check_chunks(file, columns, check, max_share), strict=True)
    unknown: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, levels in chain.from_iterable(part.unknown_levels.items() for part in packed):
        unknown[name].update(levels)
    quarantined = pl.concat([part.quarantined for part in parts])
    checked = CheckedRows(pl.concat([part.rows for part in parts], how="diagonal"), quarantined, file.n_rows)
    known = features.known_rows(as_of, *features.keys_of(checked.rows), by_account=bool(plan.windows))
    marks, n_withheld = _mark(checked, as_of, known)
    month = checked.rows["activity_month"]
    if not marks.any():
        problem = f"no account of {origin} was known at {as_of}: its months run from {month.min()!s} to {month.max()!s}"
        raise InputError(f"{problem}; score a later week or bring an earlier extract")
    last_active = None
    if "is_active" in checked.rows.columns:
        last_active = features.last_active_months(known, checked.rows["is_active"].to_numpy())
    counts = RowCounts(
        n_read=file.n_rows, n_accounts=int(marks.sum()), n_later=int((month > as_of).sum()), n_withheld=n_withheld,
        n_erased=file.n_rows - checked.rows.height - checked.quarantined.height, quarantined=checked.quarantined,
        has_account_ids=True, account_keys=key_table(checked.rows, quarantined), horizon_months=horizon_months,
        unknown_levels={name: dict(levels.most_common(_MOST_LEVELS)) for name, levels in unknown.items()},
        n_short_windows=sum(month_start(known.last_month, 1 - one.months) < known.first_month for one in plan.windows),
        own_columns=tuple(features.own_columns(plan.feature_names, file.columns)),
        first_month=known.first_month, newest_month=known.newest_month,
        n_newest=int((month == newest_whole_month(known.newest_month, as_of)).sum()),
    )  # fmt: skip
    account_ids = checked.rows["account_id"].to_numpy()
    first = at_risk_since(as_of, horizon_months)  # no month that new may be known
    since = None if known.newest_month < first else days_since_epoch(first)
    chunks = partial(_marked_chunks, packed, account_ids, marks, last_active, since)
    if not plan.windows:
        return ScoringRows(counts, plan.encoding, chunks)
    computed = compute(plan.windows, known, partial(plan.column, packed))
    accounts = account_ids[known.latest]
    return ScoringRows(counts, plan.encoding, lambda: plan.with_windows(chunks(), accounts, computed))


def _marked_chunks(
    packed: Sequence[Packed], account_ids: Longs, marks: Flags, last_active: Ints | None, at_risk_since: int | None
) -> Iterator[Chunk]:
    end = 0
    for part in packed:
        start, end = end, end + part.n_rows
        rows = marks[start:end]
        if rows.any():
            chosen = part if rows.all() else part.take(rows)
            if last_active is not None:
                months = last_active[start:end][rows]
                is_at_risk = None if at_risk_since is None else months >= at_risk_since
                chosen = replace(chosen, last_active_months=months, is_at_risk=is_at_risk)
            yield account_ids[start:end][rows], chosen


def _open_encoded(
    file: RowFile, feature_names: tuple[str, ...], max_quarantine_share: float, erased: Erased, declared: Columns
) -> ScoringRows:
    """Open encoded rows, which are checked as they are consumed; a first pass finds repeated ids."""
    one_hot = declared.encoded
    encoding = features.plan_encoded(feature_names, one_hot, declared.categories)
    id_columns = [name for name in file.columns if name == "account_id"]
    ids = pl.DataFrame(schema={"account_id": pl.Int64})
    if id_columns:
        parts = (activity.parse_ids(chunk["account_id"]) for chunk in file.chunks(id_columns, CHUNK_ROWS))
        ids = pl.concat(parts, how="diagonal")
    repeated = activity.repeated_ids(ids["account_id"])

    def check(frame: pl.DataFrame, first_row: int) -> tuple[CheckedRows, Packed]:
        frame = features.with_codes(frame, declared.categories)
        checked = activity.check_encoded(
            frame, feature_names, one_hot=one_hot, repeated=repeated, first_row=first_row, max_money=declared.max_money
        )
        if id_columns:  # otherwise the row number is the id
            checked = _without(erased, checked)
        return checked, features.pack_matrix(checked.rows.select(feature_names).cast(pl.Float32).to_numpy(), encoding)

    counts = RowCounts(file.n_rows, 0, 0, 0, bool(id_columns), pl.DataFrame(), {}, key_table(ids))

    def chunks() -> Iterator[Chunk]:
        quarantined: list[pl.DataFrame] = []
        for part, packed in _check_chunks(file, [*feature_names, *id_columns], check, max_quarantine_share):
            quarantined.append(part.quarantined)
            counts.n_accounts += part.rows.height
            counts.n_erased += part.n_read - part.rows.height - part.quarantined.height
            if part.rows.height:
                yield part.rows["account_id"].to_numpy(), packed
        counts.quarantined = pl.concat(quarantined)

    return ScoringRows(counts, encoding, chunks)


def _check_chunks(
    file: RowFile, columns: Sequence[str], check: Callable[[pl.DataFrame, int], _Checked], max_share: float
) -> Iterator[_Checked]:
    """Check chunks by their first row's number, from 1; raises ``QuarantineError`` once too many rows are broken."""

    def numbered() -> Iterator[tuple[pl.DataFrame, int]]:
        first_row = 1
        for frame in file.chunks(columns, CHUNK_ROWS):
            yield frame, first_row
            first_row += frame.height

    quarantined: list[pl.DataFrame] = []
    n_quarantined, valid = 0, pl.DataFrame()
    for checked, packed in in_threads(lambda chunk: check(*chunk), numbered()):
        quarantined.append(checked.quarantined)
        n_quarantined += checked.quarantined.height
        if n_quarantined / file.n_rows > max_share:
            break
        if checked.rows.height:
            valid = checked.rows
        yield checked, packed
    CheckedRows(valid, pl.concat(quarantined), file.n_rows).require_share(max_share)


def _without(erased: Erased, checked: CheckedRows) -> CheckedRows:
    return replace(checked, rows=erased.without(checked.rows), quarantined=erased.without(checked.quarantined))


def _mark(checked: CheckedRows, as_of: date, known: KnownRows) -> tuple[Flags, int]:
    """Mark the rows to score, and count the accounts withheld."""
    marks = np.zeros(checked.rows.height, dtype=np.bool_)
    marks[known.latest] = True
    if checked.quarantined.is_empty():
        return marks, 0
    withheld = _stale_accounts(checked.rows.filter(pl.Series(marks)), checked.quarantined, as_of)
    return marks & ~checked.rows["account_id"].is_in(withheld.implode()).to_numpy(), len(withheld)


def _stale_accounts(latest: pl.DataFrame, quarantined: pl.DataFrame, as_of: date) -> pl.Series:
    """Return the ids of accounts whose newest row was quarantined, so that an older row would be scored instead."""
    month, latest_month = pl.col("activity_month"), pl.col("latest_month")
    broken = quarantined.filter(pl.col("account_id").is_not_null() & (month.is_null() | (month <= as_of)))
    newest = broken.group_by("account_id").agg(month.max(), undated=month.is_null().any())
    joined = newest.join(latest.select("account_id", latest_month="activity_month"), on="account_id", how="left")
    return joined.filter(pl.col("undated") | latest_month.is_null() | (month >= latest_month))["account_id"]
