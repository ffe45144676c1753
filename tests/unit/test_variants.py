"""At stake: a variant's name decides whose files are read and whose customers are scored.

Two spellings of one name must be one variant, two variants never one name, and nothing typed may escape its folder.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from churn.errors import UsageError
from churn.variants import MAX_PART_LENGTH, Variant, find_variant, fold_name, nearest, similar

ALLOWED = r"[a-z0-9]+(_[a-z0-9]+)*"
parts = st.from_regex(r"[a-z0-9]{1,20}(_[a-z0-9]{1,10}){0,4}", fullmatch=True)
variants = st.builds(Variant, st.none() | parts, st.none() | parts)


@pytest.mark.parametrize(
    ("variant", "key", "prefix", "experiment", "registered_model"),
    [
        (Variant(), "base", "", "churn_prediction", "churn-prediction-model"),
        (Variant("US"), "geography-us", "geography-us/", "churn_prediction-geography-us", "churn-prediction-model-us"),
        (
            Variant(company="ClientA"),
            "company-clienta",
            "company-clienta/",
            "churn_prediction-company-clienta",
            "churn-prediction-model-clienta",
        ),
        (
            Variant("EU", "ClientB"),
            "geography-eu.company-clientb",
            "geography-eu/company-clientb/",
            "churn_prediction-geography-eu-company-clientb",
            "churn-prediction-model-eu-clientb",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Variant) else "",
)
def test_every_name_of_a_variant_is_the_agreed_one(variant, key, prefix, experiment, registered_model):
    assert variant.key == str(variant) == key
    assert variant.prefix == prefix
    assert variant.experiment == experiment
    assert variant.registered_model == registered_model


@given(geography=parts, company=parts)
def test_case_does_not_matter(geography, company):
    assert Variant(geography.upper(), company.title()) == Variant(geography, company)


@given(variant=variants)
def test_a_key_reads_back_as_the_variant_that_wrote_it(variant):
    assert Variant.from_key(variant.key) == variant


@given(one=variants, other=variants)
def test_two_variants_never_share_a_key_a_prefix_or_an_experiment(one, other):
    for name in ("key", "prefix", "experiment"):
        assert (getattr(one, name) == getattr(other, name)) == (one == other)


def test_a_registered_models_name_can_belong_to_two_variants_so_it_does_not_identify_one():
    assert Variant("us").registered_model == Variant(company="us").registered_model
    assert Variant("us") != Variant(company="us")


@given(text=st.text(max_size=80))
def test_any_text_is_either_an_allowed_part_or_refused(text):
    if text.isascii() and re.fullmatch(ALLOWED, text.lower()) and len(text) <= MAX_PART_LENGTH:
        assert Variant(text).geography == text.lower()
    else:
        with pytest.raises(UsageError, match="at most 64 characters") as refused:
            Variant(text)
        assert repr(text) in str(refused.value)


@given(text=st.text(max_size=80))
def test_a_spelling_that_is_suggested_is_itself_allowed(text):
    with_hint = ""
    try:
        Variant(company=text)
    except UsageError as error:
        with_hint = str(error)
    suggested = re.search(r"did you mean '([^']*)'\?$", with_hint)
    if suggested:
        assert Variant(company=suggested.group(1)).company == suggested.group(1)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("client-a", "client_a"),
        ("client a", "client_a"),
        (" us ", "us"),
        ("us\n", "us"),
        ("a__b", "a_b"),
        ("_us", "us"),
        ("u\N{LATIN SMALL LETTER LONG S}", "us"),
        ("\N{KELVIN SIGN}y", "ky"),
        ("stra\N{LATIN SMALL LETTER SHARP S}e", "strasse"),
        ("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}n", "in"),
        ("us\0", "us"),
        ("../us", "us"),
        ("us/company-x", "us_company_x"),
        ("eu.company-clientb", "eu_company_clientb"),
        ("x" * 65, "x" * 64),
    ],
)
def test_a_near_miss_is_refused_with_the_spelling_meant(typed, meant):
    with pytest.raises(UsageError, match=f"did you mean '{meant}'\\?$"):
        Variant(typed)


@pytest.mark.parametrize("typed", ["", " ", "_", "..", "/", "\0", "日本", "\ud800"])
def test_what_resembles_nothing_is_refused_without_a_guess(typed):
    with pytest.raises(UsageError) as refused:
        Variant(typed)
    assert "did you mean" not in str(refused.value)


def test_a_part_of_64_characters_is_the_longest_allowed():
    assert Variant("x" * 64).geography == "x" * 64


@pytest.mark.parametrize(
    "key",
    [
        "",
        "us",
        "Base",
        "base.geography-us",
        "geography-",
        "geography",
        "geography-US",
        "geography-us.geography-us",
        "company-a.geography-us",
        "geography-us.company-a.company-a",
        "geography-us.",
        "region-us",
        "geography-us/company-a",
        " base",
    ],
)
def test_a_key_that_no_variant_writes_is_refused(key):
    with pytest.raises(UsageError):
        Variant.from_key(key)


@pytest.mark.parametrize(("key", "meant"), [("MX", "geography-mx or company-mx"), ("geography-US", "geography-us")])
def test_a_key_that_is_nearly_one_is_refused_with_the_key_meant(key, meant):
    with pytest.raises(UsageError, match=rf"did you mean {meant}\?"):
        Variant.from_key(key)


@given(text=st.text(max_size=40))
def test_any_text_read_as_a_key_gives_its_variant_or_is_refused(text):
    try:
        variant = Variant.from_key(text)
    except UsageError:
        return
    assert variant.key == text


US, EU_B, CLIENT_A = Variant("us"), Variant("eu", "clientb"), Variant(company="clienta")


@pytest.mark.parametrize(
    ("typed", "variant"),
    [
        ("us", US),
        ("US", US),
        ("Geography-US", US),
        ("ClientA", CLIENT_A),
        ("EU", EU_B),
        ("Base", Variant()),
        ("geography-new", Variant("new")),  # a key names a variant that is not known yet
    ],
)
def test_a_variant_is_named_by_its_key_or_by_a_part_that_only_one_has(typed, variant):
    assert find_variant(fold_name(typed), lambda: [US, EU_B, CLIENT_A]) == variant


@pytest.mark.parametrize(
    ("typed", "known", "part"),
    [
        ("EU", [EU_B, Variant("eu")], "'eu' is ambiguous: geography-eu.company-clientb, geography-eu; name it by"),
        ("x", [Variant("x"), Variant(company="x")], "such as geography-x or company-x"),
        ("mx", [US], r"'mx' is not known \(known are: geography-us\); name it by its key, such as geography-mx or"),
        ("mx", [], "known are: none yet"),
        ("u\N{LATIN SMALL LETTER LONG S}", [US], "is not one of base, geography-<g>"),
    ],
)
def test_a_name_that_is_no_variants_or_several_ones_is_refused_with_the_candidates(typed, known, part):
    with pytest.raises(UsageError, match=part):
        find_variant(fold_name(typed), lambda: known)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        (Variant("ux"), US),
        (Variant("usa"), US),
        (Variant(company="client_a"), CLIENT_A),
        (Variant("eu", "clientc"), EU_B),
        (Variant("mx"), None),
        (Variant("austria"), None),
        (US, None),
    ],
)
def test_a_variant_is_similar_to_another_by_its_name_not_by_what_all_keys_begin_with(typed, near):
    assert similar(typed, [US, EU_B, CLIENT_A]) == near


NAMED = {
    "risk-geography-us": "geography-us",
    "Risk.GEOGRAPHY-EU.company-b": "geography-eu.company-b",
    "geography-eu-company-b_2": "geography-eu.company-b_2",
    "company-x": "company-x",
    "churn-prediction-model": "base",
    "churn-prediction-model-eu-b": "geography-eu.company-b",
    "churn-prediction-model-company-b": "company-b",
    "churn-prediction-model-us": None,  # a geography or a company
    "churn-prediction-models-eu-b": None,
    "risk": None,
    "base": None,
    "xgeography-us": None,
    "risk-geography-us-v2": None,
    "risk-company-b-geography-us": None,
    "geography-eucompany-b": None,
    "geography-": None,
}


@pytest.mark.parametrize("name", NAMED)
def test_the_name_of_a_model_tells_its_variant_only_by_a_key_at_its_end(name):
    if (key := NAMED[name]) is None:
        with pytest.raises(UsageError, match="does not tell its variant"):
            Variant.from_model_name(name)
    else:
        assert Variant.from_model_name(name).key == key


def test_an_unknown_variant_is_answered_with_the_closest_existing_one():
    existing = [Variant("us"), Variant(company="clienta")]
    assert nearest(Variant(company="client_a"), existing) == "; did you mean 'company-clienta'?"
    assert nearest(Variant("zz", "qqqqqqqq"), []) == ""
