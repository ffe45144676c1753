"""At stake: whom a list holds. A campaign's members are drawn once, each into one arm, and no order of arrival puts an
excluded account on a list.
"""

import pytest

from churn.database.decisions import Decisions
from churn.deployment.services import Deployment
from churn.variants import Variant
from tests.support.campaigns import campaign, members, on_list, publish_at_risk

US, ACME = Variant("us"), Variant(company="acme")
SCORES = {account: account / 1000 for account in range(1, 1000)}


@pytest.fixture
def decisions(deployment: Deployment) -> Decisions:
    publish_at_risk(deployment.database, US, SCORES, gone=range(900, 1000))
    publish_at_risk(deployment.database, ACME, dict.fromkeys(range(1, 101), 0.9))
    return Decisions(deployment.database)


def test_a_campaign_is_drawn_once_and_its_arms_are_apart(deployment: Deployment, decisions: Decisions) -> None:
    url = deployment.database
    decisions.create(campaign("spring", US, ACME, budget=300, holdout_share=0.1), [])
    drawn = members(url, "spring")
    decisions.create(campaign("spring", US, ACME, budget=300, holdout_share=0.1), [])
    decisions.select("spring", [])

    assert members(url, "spring") == drawn
    (summary,) = decisions.summaries("spring")
    assert summary["n_offered"] == 300 == len(on_list(url, "spring"))
    assert 50 < summary["n_control"] < 100
    assert 25 < summary["n_held_out"] < 65
