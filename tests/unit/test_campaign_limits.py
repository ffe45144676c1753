"""At stake: a number that no campaign can have is refused by its flag, before anything is opened or drawn."""

import argparse

import pytest

from churn.cli import campaign
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
