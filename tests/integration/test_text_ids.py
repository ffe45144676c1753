"""At stake: a company whose players have names for ids is served as one whose players have numbers, to the end: to the
list, to the explanation, and to being forgotten.
"""

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from churn.cli.main import main
from churn.data.activity import check_activity, parse_ids
from churn.database.connection import create_engine
from churn.database.erasure import erase_from_dagster
from churn.deployment.services import Deployment
from churn.variants import Variant
from churn.wording import as_markdown
from orchestration.assets.metadata import table
from tests.support.account_ids import IDS, MISSING, UNREADABLE
from tests.support.batches import week_request
from tests.support.inputs import activity, as_csv, as_parquet, expected, monday, put_input, register_bundled
from tests.support.site import Run, Site, n_rows_naming

ACME, BRAVO = Variant(company="acme"), Variant(company="bravo")
SPACES = "".join(
    map(chr, (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200C), 0x2028, 0x3000, 0xFEFF))
)


@pytest.fixture
def numbers_in_sql(site: Site):
    with create_engine(site.server.set(database=site.churn)).connect() as connection:
        query = sa.text(
            "SELECT churn_account_number(id) FROM unnest(CAST(:ids AS text[])) WITH ORDINALITY AS x (id, i) ORDER BY i"
        )
        yield lambda ids: list(connection.scalars(query, {"ids": ids}))


def test_python_and_postgresql_number_an_id_alike(numbers_in_sql) -> None:
    pieces = st.sampled_from(
        [*IDS, *SPACES, *"0123456789+-.,eE \u2212_'", "e+", "00", "true", "e5", "\u00df", "{", '"']
    )
    texts = st.lists(st.lists(pieces, max_size=6).map("".join) | st.text(max_size=9), min_size=1, max_size=60)

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @example([*IDS, *(f"{space}7{space}" for space in SPACES), *SPACES])
    @given(texts)
    def agree(ids: list[str]) -> None:
        ids = [one for one in ids if "\0" not in one]
        assert numbers_in_sql(ids) == parse_ids(pl.Series("account_id", ids, dtype=pl.String))["account_id"].to_list()

    agree()
    assert numbers_in_sql([one for one in (*UNREADABLE, *MISSING) if "\0" not in one]) == [None] * (
        len(UNREADABLE) + len(MISSING) - 1
    )
    assert numbers_in_sql([None]) == [None]


def with_texts(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows whose ids are numbers, numbers with leading zeros and UUIDs; and the number that each was."""
    names = {
        number: (str(number), f"00{number}", str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))))[i % 3]
        for i, number in enumerate(sorted(set(rows["account_id"])))
    }
    return rows.assign(account_id=rows["account_id"].map(names)), {name: number for number, name in names.items()}


@pytest.mark.slow
def test_texts_are_scored_shown_explained_erased_and_known_in_past_weeks(
    site: Site, log_model: Run, deployment: Deployment, run_main: Run, local_root: Path
) -> None:
    rows, numbers = with_texts(activity())
    name = next(one for one in numbers if "-" in one)
    register_bundled(site, log_model, ACME.key, BRAVO.key)
    own = rows[rows["account_id"] == name]
    earlier = own["activity_month"].min() - pd.offsets.MonthBegin(1)
    broken = own.head(1).assign(activity_month=earlier, total_deposit=-1.0)
    facts = check_activity(pl.from_pandas(rows)).rows
    for variant in (ACME, BRAVO):
        put_input(site, variant.key, as_parquet(pd.concat([rows, broken])))
        deployment.history().append(variant, facts, datetime.now(UTC) - timedelta(days=20))
        deployment.scorer().score_variant(week_request(monday()).of(variant))

    scores = expected(activity())
    shown = dict(site.current("variant = 'company-acme'").select("account_key", "churn_probability").iter_rows())
    assert shown == pytest.approx({one: scores[number] for one, number in numbers.items()}, abs=1e-6)
    wrong = "SELECT count(*) FROM churn_predictions_current WHERE account_id <> churn_account_number(account_key)"
    assert site.rows(site.churn, wrong) == [(0,)]
    stored = "SELECT count(*) FROM churn_predictions WHERE (account_key IS NULL) = (account_id > 0)"
    assert site.rows(site.churn, stored) == [(2 * len(numbers),)]
    said = run_main(main, "explain", "--account", f" {name} ", "--variant", "acme")
    assert f"account {name} of company-acme, week of {monday()}" in said.out
    past = ("score", ACME.key, BRAVO.key, "--week", str(monday(1)))
    assert run_main(main, *past).status == 0
    weeks = (
        "SELECT variant, count(*) FROM churn_predictions_current WHERE account_id = churn_account_number(:name) "
        "AND account_key = :name GROUP BY 1 ORDER BY 1"
    )
    assert site.rows(site.churn, weeks, name=name) == [(ACME.key, 2), (BRAVO.key, 2)]

    copy = local_root / ACME.prefix / "data/churn/activity.csv"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(as_csv(rows))
    erased = run_main(main, "erase", "--account", name, "--company", "Acme")

    assert f"account {name} erased from company=acme (found in company-acme), and excluded" in erased.out
    assert site.rows(site.churn, weeks, name=name) == [(BRAVO.key, 2)]
    assert (name in copy.read_text(), copy.read_text().count("\n")) == (False, 1 + len(rows) - len(own))
    for again in (("score", ACME.key), past):
        assert run_main(main, *again).status == 0
    assert site.rows(site.churn, weeks, name=name) == [(BRAVO.key, 2)]
    known = {variant: deployment.history().read(variant)["account_key"].to_list() for variant in (ACME, BRAVO)}
    assert [name in keys for keys in known.values()] == [False, True]
    everywhere = run_main(main, "erase", "--account", name)
    assert "from all variants (found in company-acme, company-bravo), and excluded" in everywhere.out
    assert n_rows_naming(site, site.churn, name) == {}


@pytest.mark.parametrize("key", ["A-17", 'it\'s "q" \\ 5 %', "M\u00fc\U0001f3b2", "a|b*c", "a  b\u00a0c\td"])
def test_a_text_is_erased_where_dagster_shows_or_quotes_it(site: Site, key: str) -> None:
    others = [f"{key}-2", f"x{key}", f"{key}b", "other"]
    listed = table(("account_id", "churn_probability"), [(one, "0.912") for one in (key, *others)]).value
    quoted = [f"line 2 is not JSON: {json.dumps({'account_id': one, 'x': 1})!r}" for one in (key, *others)]
    site.rows(site.churn, "CREATE TABLE event_logs (event text)")
    for text in (listed, *quoted):
        event = json.dumps({"metadata": {"md_str": text}})
        site.rows(site.churn, "INSERT INTO event_logs VALUES (:event)", event=event)

    assert erase_from_dagster(site.server.set(database=site.churn), key, dry_run=False) == 2

    events = [event for (event,) in site.rows(site.churn, "SELECT event FROM event_logs")]
    left = [json.loads(event)["metadata"]["md_str"] for event in events]
    assert sum(text.count("erased") for text in left) == 2
    assert {*left} >= {*quoted[1:]}
    assert all(any(one in text for text in left) for one in map(as_markdown, others))
    assert not [text for text in left if f"| {as_markdown(key)} |" in text]
