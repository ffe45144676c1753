"""At stake: a number that no campaign can have is refused by its flag, before anything is opened or drawn."""

import argparse
from pathlib import Path

import pytest

from churn.cli import campaign
from churn.data.account_ids import read_id
from churn.data.formats import read_frame
from churn.decisions.exclusions import parse_exclusions
from churn.errors import UsageError


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--control", "1.5"], "--control 1.5"), (["--control", "1"], "--control 1.0"), (["--control", "-0.1"], "-0.1"),
        (["--control", "nan"], "--control nan"), (["--top-share", "0"], "--top-share 0.0"),
        (["--top-share", "1.01"], "--top-share 1.01"), (["--budget", "0"], "--budget 0"),
        (["--budget", "99999999999"], "--budget 99999999999"), (["--floor", "inf"], "--floor inf"),
        (["--floor", "nan"], "--floor nan"), (["--channel", " "], "--channel ' '"),
    ],
)  # fmt: skip
def test_limits_that_no_campaign_can_have_are_refused_by_their_flag(flags: list[str], said: str):
    parser = argparse.ArgumentParser()
    campaign.add_parsers(parser.add_subparsers(dest="command"))
    for name, problem in (("spring", said), ("Spring 1", "name 'Spring 1'")):
        args = parser.parse_args(["campaign", "create", name, "--geography", "us", "--channel", "mail", *flags])

        with pytest.raises(UsageError, match=r"is not allowed; .* is needed") as refused:
            campaign.run(args, pytest.fail)

        assert problem in str(refused.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_exclusions_are_read_as_spreadsheets_write_them(tmp_path: Path, mark: str, separator: str, end: str):
    rows = [["account_id", "until"], ["00123", ""], ["123", "2027-01-01"], ["ab-1", ""], ["'-7", "soon"]]
    path = tmp_path / "objections.csv"
    path.write_bytes((mark + end.join(separator.join(row) for row in rows)).encode())

    found, broken = parse_exclusions(read_frame(path), "acme")

    numbers = [read_id(text)[0] for text in ("00123", "123", "ab-1")]
    assert [(one.company, one.account) for one in found] == [("acme", number) for number in numbers]
    assert len(set(numbers)) == 3, "leading zeros tell accounts apart"
    assert str(found[1].until) == "2027-01-01"
    assert broken == [4]
