"""Make a bucket that keeps versions, unless it is there. What it is called with: its name."""

import sys

import boto3


def make_bucket(name: str) -> None:
    """Make the bucket; safe to run again."""
    s3 = boto3.client("s3")
    if name not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})


if __name__ == "__main__":
    make_bucket(sys.argv[1])
