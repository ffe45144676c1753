# What a partner's uploader may do, to be attached to its role: write extracts of its own companies, and nothing else.
# Prefixes are whole, without wildcards: a key below another's prefix could match one.

data "aws_region" "current" {}

data "aws_iam_policy_document" "uploader" {
  for_each = var.uploaders

  statement {
    sid       = "Extracts"
    actions   = ["s3:PutObject", "s3:AbortMultipartUpload"]
    resources = [for prefix in each.value : "${aws_s3_bucket.this.arn}/${prefix}/data/churn/*"]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:GenerateDataKey", "kms:Decrypt"] # to decrypt is part of an upload in parts
    resources = [var.kms_key_arn]
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.current.name}.amazonaws.com"]
    }
  }
}

resource "aws_iam_policy" "uploader" {
  for_each = var.uploaders

  name        = "${var.bucket}-uploader-${each.key}"
  description = "Writes extracts below ${join(", ", each.value)}."
  policy      = data.aws_iam_policy_document.uploader[each.key].json
}
