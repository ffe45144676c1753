"""At stake: a variant in no chunk is not scored, one in two is scored twice, and a chunk that is too large does not fit
where it runs.
"""

from hypothesis import given
from hypothesis import strategies as st

from orchestration.partitions import RANGE_END_TAG, RANGE_START_TAG, ranges, span

keys = st.lists(st.text("abcde", min_size=1, max_size=4), unique=True, max_size=40)


@given(ordered=keys, wanted=st.sets(st.text("abcde", min_size=1, max_size=4), max_size=40), most=st.integers(0, 12))
def test_chunks_hold_what_is_wanted_once_in_order_and_no_more_each_than_allowed(
    ordered: list[str], wanted: set[str], most: int
) -> None:
    chunks = [span(tags, ordered) for tags in ranges(ordered, wanted, most)]

    assert [key for chunk in chunks for key in chunk] == [key for key in ordered if key in wanted]
    assert all(0 < len(chunk) <= (most or len(ordered)) for chunk in chunks)


@given(ordered=keys, most=st.integers(0, 12))
def test_there_are_as_few_chunks_as_can_hold_all(ordered: list[str], most: int) -> None:
    chunks = list(ranges(ordered, set(ordered), most))

    assert len(chunks) == -(-len(ordered) // (most or max(len(ordered), 1)))


def test_a_range_with_a_bound_that_is_gone_or_without_bounds_has_no_keys() -> None:
    assert span({RANGE_START_TAG: "a", RANGE_END_TAG: "gone"}, ["a", "b"]) == []
    assert span({RANGE_START_TAG: "gone", RANGE_END_TAG: "b"}, ["a", "b"]) == []
    assert span({}, ["a", "b"]) == []
    assert span({"dagster/partition": "b"}, ["a", "b"]) == ["b"]
