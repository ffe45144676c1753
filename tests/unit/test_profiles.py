"""At stake: drift is judged by these counts alone, so each row must be in the bin it belongs to, however it came."""

import json
import time
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churn.data.features import Encoding, OneHot, Packed, derive, encode, pack, pack_matrix, plan_encoded, plan_encoding
from churn.errors import InputError
from churn.monitoring.profiles import (
    MOST_BINS,
    SCORE,
    Bins,
    Profile,
    reference_profile,
    regrouped,
    spliced,
    untrained_missing,
)

DATA = Path(__file__).resolve().parents[2] / "data" / "churn"
ENCODING = Encoding(5, (("total_deposit", 0), ("total_ngr", 1)), (OneHot("brand_id", ("OH", "PA", "MI"), (2, 3, 4)),))
NAN = float("nan")

# Numbers below 1e-38 are 0 on a thread that flushes them, as libraries make theirs, and not on another.
floats = st.floats(width=32, allow_nan=True, allow_infinity=False, allow_subnormal=False)
columns = st.lists(st.one_of(floats, st.sampled_from([0.0, -0.0, 1.0, NAN])), max_size=80)


def rows(deposit: object, ngr: object = None, brand: object = None) -> tuple[Packed, np.ndarray]:
    """Rows of ``ENCODING`` and scores that rise from row to row."""
    n = len(deposit)
    numbers = np.array([deposit, np.zeros(n) if ngr is None else ngr], dtype=np.float32).reshape(2, n)
    levels = np.array([np.zeros(n) if brand is None else brand], dtype=np.uint16).reshape(1, n)
    return Packed(numbers, levels), np.linspace(0.1, 0.9, n, dtype=np.float32)


def reference(deposit: object) -> Profile:
    packed, scores = rows(deposit)
    return reference_profile(packed, ENCODING, scores)


def counted(profile: Profile, *chunks: tuple[Packed, np.ndarray]) -> Profile:
    nothing = replace(profile, counts=np.zeros_like(profile.counts))
    return sum((profile.count(*chunk) for chunk in chunks), start=nothing)


def deposits(profile: Profile) -> dict[str, int]:
    """Label and count of the deposit's bins that are not empty."""
    pairs = zip(profile.bins[0].labels, profile.by_feature()["total_deposit"].tolist(), strict=True)
    return {label: count for label, count in pairs if count}


def random_rows(seed: int, n: int) -> tuple[Packed, np.ndarray]:
    rng = np.random.default_rng(seed)
    numbers = rng.lognormal(4, 2, (2, n)).astype(np.float32)
    numbers[0, rng.random(n) < 0.55] = 0
    numbers[rng.random((2, n)) < 0.05] = NAN
    return Packed(numbers, rng.integers(0, 4, (1, n)).astype(np.uint16)), rng.beta(2, 5, n).astype(np.float32)


def test_a_profile_has_the_parents_in_the_encodings_order_and_then_the_score():
    assert [bins.feature for bins in reference([1.0, 2.0]).bins] == [*ENCODING.columns, SCORE]


def test_a_heavy_value_is_alone_in_its_bin_and_the_others_fill_theirs_evenly():
    others = np.arange(1, 451)
    profile = reference([0.0] * 540 + others.tolist() + [NAN] * 10)

    counts = deposits(profile)

    assert counts.pop("0") == 540
    assert counts.pop("(missing)") == 10
    assert set(counts.values()) <= set(range(50, 70))
    assert len(counts) >= MOST_BINS - 3


def test_the_bundled_activitys_zeros_are_told_from_small_amounts():
    frame = derive(pl.read_parquet(DATA / "activity.parquet"), date(2026, 10, 31))
    names = json.loads((DATA / "feature_names_3.json").read_text())
    encoding = plan_encoding(names, frame.columns)
    packed = pack(frame, encoding)

    profile = reference_profile(packed, encoding, np.full(frame.height, 0.5))

    bins = profile.bins[encoding.columns.index("total_deposit")]
    counts = dict(zip(bins.labels, profile.by_feature()["total_deposit"].tolist(), strict=True))
    assert counts["0"] == (frame["total_deposit"] == 0).sum()
    missing = profile.by_feature()["months_active"][-1]
    assert missing == frame["months_active"].null_count()
    brands = dict(
        zip(*(values for values in (encoding.one_hots[0].levels, profile.by_feature()["brand_id"])), strict=False)
    )
    assert brands["OH"] == (frame["brand_id"] == "OH").sum()


@given(seen=columns, batch=columns)
@settings(deadline=None, max_examples=60)
def test_every_row_is_in_the_one_bin_that_its_value_belongs_to(seen, batch):
    profile = counted(reference(seen), rows(batch))

    bins = profile.bins[0]
    edges = [-np.inf, *bins.edges, np.inf]
    values = np.array(batch, dtype=np.float32)
    expected = [int(((values > low) & (values <= high)).sum()) for low, high in pairwise(edges)]
    assert profile.by_feature()["total_deposit"].tolist() == [*expected, int(np.isnan(values).sum())]
    assert profile.n_rows == len(batch)
    assert len(bins.labels) == bins.n_bins


@given(seen=columns)
@settings(deadline=None, max_examples=60)
def test_a_number_has_at_most_ten_bins_of_values_and_none_mixes_a_heavy_value_with_others(seen):
    profile = reference(seen)

    edges = np.array(profile.bins[0].edges)
    assert len(edges) + 1 <= MOST_BINS
    values = np.array(seen, dtype=np.float32)
    known = values[np.isfinite(values)]
    bins = np.searchsorted(edges, known)
    for value in np.unique(known):
        if (known == value).sum() > len(known) / 5:
            assert set(known[bins == bins[known == value][0]]) == {value}


@pytest.mark.parametrize("seen", [[], [NAN], [7.0], [7.0] * 50, [1.0, 2.0], [NAN, 3.0, 3.0, 4.0]])
def test_few_values_a_constant_or_none_at_all_make_a_profile_that_notices_new_values(seen):
    profile = reference(seen)

    batch = counted(profile, rows([-1e6, 7.0, 1e6, NAN]))

    assert batch.n_rows == 4
    assert deposits(batch)["(missing)"] == 1
    if seen.count(7.0):
        assert deposits(batch) == {"below 7": 1, "7": 1, "over 7": 1, "(missing)": 1}


def test_zeros_have_their_bin_on_a_thread_that_takes_denormal_numbers_for_zero_too():
    edges = np.array(reference([0.0, 0.0, 5.0]).bins[0].edges, dtype=np.float32)

    flushed = np.where(np.abs(edges) < np.finfo(np.float32).tiny, 0, edges)

    assert ((flushed[:-1] < 0) & (flushed[1:] == 0)).sum() == 1


def test_values_beyond_the_reference_fall_into_the_outermost_bins():
    profile = reference(np.arange(100))

    batch = counted(profile, rows([-np.inf, -5, 1e30, np.inf]))

    counts = batch.by_feature()["total_deposit"]
    assert (counts[0], counts[-2], counts[-1]) == (2, 2, 0)


def test_a_level_is_counted_in_its_place_and_unknown_ones_at_the_end():
    profile = counted(reference([1.0]), rows(np.zeros(7), brand=[0, 2, 2, 3, 3, 3, 1]))

    assert profile.bins[2].labels == ("OH", "PA", "MI", "(other)")
    assert profile.by_feature()["brand_id"].tolist() == [1, 1, 2, 3]


@given(n=st.integers(0, 300), cuts=st.lists(st.integers(0, 300), max_size=4), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=30)
def test_a_profile_does_not_depend_on_how_its_rows_came_in_chunks_or_profiles(n, cuts, seed):
    profile = reference_profile(random_rows(seed, 500)[0], ENCODING, random_rows(seed, 500)[1])
    packed, scores = random_rows(seed + 1, n)
    bounds = [0, *sorted(min(cut, n) for cut in cuts), n]
    chunks = [(packed.take(slice(low, high)), scores[low:high]) for low, high in pairwise(bounds)]

    whole = counted(profile, (packed, scores))
    in_chunks = counted(profile, *chunks)
    merged = sum((counted(profile, chunk) for chunk in chunks), start=counted(profile))

    assert whole.counts.tolist() == in_chunks.counts.tolist() == merged.counts.tolist()
    assert merged.counts.dtype == np.int64


def test_a_reference_counts_its_own_rows():
    packed, scores = random_rows(1, 1_000)

    profile = reference_profile(packed, ENCODING, scores)

    assert profile.counts.tolist() == counted(profile, (packed, scores)).counts.tolist()
    assert profile.n_rows == 1_000


@given(seen=columns, seed=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_a_profile_read_back_counts_every_row_as_before(seen, seed):
    profile = reference(seen)

    read = Profile.from_json(profile.to_json())

    assert read.bins == profile.bins
    assert read.counts.tolist() == profile.counts.tolist()
    chunk = random_rows(seed, 100)
    assert counted(read, chunk).counts.tolist() == counted(profile, chunk).counts.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "features": []}',
        '{"format": 1, "features": []}',
        '{"format": 1, "features": [{"feature": "a", "edges": [0], "counts": [1]}]}',
        '{"format": 1, "features": [{"feature": "a", "edges": ["x"], "counts": [1, 2, 3]}]}',
        '{"format": 1, "features": [{"feature": "a", "edges": [0], "counts": [1, 2.5, 3]}]}',
        '{"format": 1, "features": [{"feature": "a", "edges": [0], "counts": [1, -2, 3]}]}',
    ],
)
def test_what_is_no_profile_is_refused(text):
    with pytest.raises(InputError, match="profile"):
        Profile.from_json(text)


def test_profiles_of_different_bins_are_not_added():
    with pytest.raises(InputError, match="total_deposit"):
        reference([1.0, 2.0]) + reference([3.0, 4.0])


def test_rows_of_another_encoding_are_refused():
    profile, (packed, scores) = reference([1.0, 2.0]), rows([1.0, 2.0])

    with pytest.raises(InputError, match="1 scores"):
        profile.count(packed, scores[:1])
    with pytest.raises(InputError, match="1 numbers"):
        profile.count(Packed(packed.numbers[:1], packed.levels), scores)
    with pytest.raises(InputError, match="brand_id has a level with index 9"):
        profile.count(*rows([1.0], brand=[9]))


def test_counts_must_be_as_many_as_bins():
    with pytest.raises(InputError, match="3 bins"):
        Profile((Bins("a", edges=(0.0,)),), np.zeros(2, dtype=np.int64))


@pytest.mark.slow
def test_counting_takes_less_than_a_tenth_of_a_microsecond_a_row_and_feature():
    chunk = random_rows(1, 65_536)
    profile = reference_profile(chunk[0], ENCODING, chunk[1])
    profile.count(*chunk)

    started = time.process_time()
    for _ in range(20):
        profile.count(*chunk)
    us = (time.process_time() - started) * 1e6 / (20 * 65_536 * 4)

    assert us < 0.1


def test_a_spliced_reference_has_the_inputs_of_one_and_the_scores_of_the_other():
    encoding = Encoding(1, (("x", 0),), ())
    rng = np.random.default_rng(1)

    def profile(n: int) -> Profile:
        packed = Packed(rng.normal(size=(1, n)).astype(np.float32), np.empty((0, n), dtype=np.uint16))
        return reference_profile(packed, encoding, rng.random(n))

    year, held_out = profile(1200), profile(300)

    found = spliced(year, held_out)

    counts = found.by_feature()
    assert counts["x"].tolist() == year.by_feature()["x"].tolist()
    assert counts[SCORE].tolist() == held_out.by_feature()[SCORE].tolist()
    assert Profile.from_json(found.to_json()).by_feature()[SCORE].sum() == 300


NAMES = ("visits", "tier_gold", "tier_silver", "state_OH", "state_PA")


@settings(deadline=None)
@given(
    tiers=st.lists(st.sampled_from(["gold", "silver", "bronze"]), min_size=1, max_size=60),
    states=st.lists(st.sampled_from(["OH", "PA"]), min_size=60, max_size=60),
)
def test_a_reference_of_encoded_rows_serves_raw_ones_whatever_their_categories_are_called(tiers, states):
    raw = pl.DataFrame({"visits": np.arange(len(tiers)) % 7, "tier": tiers, "state": states[: len(tiers)]})
    encoding = plan_encoding(NAMES, raw.columns)
    scores = np.linspace(0.1, 0.9, raw.height, dtype=np.float32)
    as_raw = reference_profile(pack(raw, encoding), encoding, scores)
    encoded = plan_encoded(NAMES, ["state"])
    matrix = encode(raw, encoding)
    as_encoded = reference_profile(pack_matrix(matrix, encoded), encoded, scores)
    assert [bins.feature for bins in as_encoded.bins] == ["visits", "tier_gold", "tier_silver", "state", SCORE]

    made = regrouped(as_encoded, encoding)

    assert made.bins == as_raw.bins
    assert made.counts.tolist() == as_raw.counts.tolist()
    assert regrouped(as_raw, encoding).counts.tolist() == as_raw.counts.tolist()


@pytest.mark.parametrize(
    "encoding",
    [
        Encoding(1, (("total_handle", 0),), ()),
        Encoding(2, (("total_deposit", 0),), (OneHot("brand_id", ("OH", "PA"), (1,)),)),
        Encoding(2, (("total_deposit", 0),), (OneHot("tier", ("gold",), (1,)),)),
        Encoding(1, ((SCORE, 0),), ()),
    ],
    ids=["a number", "other levels", "a category", "the score"],
)
def test_a_reference_does_not_serve_rows_with_a_parent_it_does_not_know(encoding):
    assert regrouped(reference([1, 2, 3]), encoding) is None


def test_a_reference_whose_numbers_are_no_levels_of_one_category_does_not_serve_it():
    both = Encoding(2, (("tier_gold", 0), ("tier_silver", 1)), ())
    packed = Packed(np.ones((2, 9), dtype=np.float32), np.empty((0, 9), dtype=np.uint16))
    raw = Encoding(2, (), (OneHot("tier", ("gold", "silver"), (0, 1)),))
    assert regrouped(reference_profile(packed, both, np.linspace(0, 1, 9)), raw) is None


def test_a_number_that_was_never_missing_in_the_reference_is_reported_with_its_accounts():
    complete, some = reference([1.0] * 400), reference([1.0] * 399 + [NAN])
    batch = rows([2.0] * 80 + [NAN] * 20)

    assert untrained_missing(complete, counted(complete, batch)) == {"total_deposit": 20}
    assert untrained_missing(some, counted(some, batch)) == {}
    assert untrained_missing(complete, counted(complete, rows([2.0] * 100))) == {}
    few = reference([1.0] * 10)  # may lack a fifth by chance
    assert untrained_missing(few, counted(few, batch)) == {}
