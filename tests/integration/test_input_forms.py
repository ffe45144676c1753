"""At stake: what a company's tools write is scored as the bundled form is, and rows that say nothing are refused."""

import boto3
import polars as pl
import pytest

from churn.deployment.services import Deployment
from churn.errors import QuarantineError
from churn.variants import Variant
from tests.support.batches import week_request
from tests.support.inputs import activity, as_csv, as_parquet, monday, put_input, register_bundled
from tests.support.site import Run, Site

US = Variant("us")
KEY = f"{US.prefix}data/churn/activity"


def scores(site: Site) -> pl.DataFrame:
    return site.current(f"variant = '{US.key}'").select("account_id", "churn_probability").sort("account_id")


def test_a_folder_of_spark_in_other_spelling_scores_as_the_file_did_and_unknown_levels_are_refused(
    site: Site, log_model: Run, deployment: Deployment
) -> None:
    register_bundled(site, log_model, US.key)
    rows, s3 = activity(), boto3.client("s3")
    put_input(site, US.key, as_parquet(rows))
    request = week_request(monday())
    deployment.scorer().score_variant(request.of(US))
    expected = scores(site)

    s3.delete_object(Bucket=site.bucket, Key=f"{KEY}.parquet")
    written = rows.assign(
        brand_id=" " + rows["brand_id"].str.lower(),
        activity_month=rows["activity_month"].astype(str) + " 00:00:00+00",
        account_id=rows["account_id"].astype(float),
    ).rename(columns=str.upper)
    half = len(written) // 2
    s3.put_object(Bucket=site.bucket, Key=f"{KEY}.parquet/part-0.snappy.parquet", Body=as_parquet(written[:half]))
    s3.put_object(Bucket=site.bucket, Key=f"{KEY}.parquet/part-1.csv", Body=as_csv(written[half:]))
    s3.put_object(Bucket=site.bucket, Key=f"{KEY}.parquet/_SUCCESS", Body=b"")
    outcome = deployment.scorer().score_variant(request.of(US))

    assert outcome.record.source_uri == f"s3://{site.bucket}/{KEY}.parquet"
    assert (
        site.current(f"variant = '{US.key}'")
        .select("account_id", "churn_probability")
        .sort("account_id")
        .equals(expected)
    )

    put_input(site, US.key, as_parquet(rows.assign(brand_id="State " + rows["brand_id"])))
    with pytest.raises(QuarantineError, match=r"have a brand_id that the model does not know \('State "):
        deployment.scorer().score_variant(request.of(US))
    assert scores(site).equals(expected)
