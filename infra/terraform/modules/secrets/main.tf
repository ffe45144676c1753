# The key that encrypts everything of the deployment, and the secrets. Passwords are made by Secrets Manager, and go
# from there to the secret by write-only arguments: neither plans nor states hold one.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account = data.aws_caller_identity.current.account_id
  root    = "arn:${data.aws_partition.current.partition}:iam::${local.account}:root"
  logs    = "arn:${data.aws_partition.current.partition}:logs:${data.aws_region.current.name}:${local.account}:log-group"
  # Login and database; as infra/compose/databases.sql has them.
  logins = {
    setup   = "churn_db"
    churn   = "churn_db"
    analyst = "churn_db"
    watch   = "churn_db"
    mlflow  = "mlflow_db"
    dagster = "dagster_db"
  }
}

data "aws_iam_policy_document" "key" {
  # checkov:skip=CKV_AWS_109: it is a key's own policy: "*" is this key, and the account's administrators keep it
  # checkov:skip=CKV_AWS_111: as above
  # checkov:skip=CKV_AWS_356: as above
  statement {
    sid       = "Account"
    actions   = ["kms:*"]
    resources = ["*"]
    principals {
      type        = "AWS"
      identifiers = [local.root]
    }
  }

  statement {
    sid       = "Logs"
    actions   = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]
    resources = ["*"]
    principals {
      type        = "Service"
      identifiers = ["logs.${data.aws_region.current.name}.amazonaws.com"]
    }
    condition {
      test     = "ArnLike"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values = [
        "${local.logs}:/${var.name}/*",
        "${local.logs}:/aws/rds/instance/${var.name}/*",
        "${local.logs}:/aws/ecs/containerinsights/${var.name}/*",
      ]
    }
  }

  statement {
    sid       = "Alarms"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey*"]
    resources = ["*"]
    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

resource "aws_kms_key" "this" {
  description             = "${var.name}: database, bucket, secrets, logs, alarms"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.key.json
}

resource "aws_kms_alias" "this" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this.key_id
}

ephemeral "aws_secretsmanager_random_password" "login" {
  for_each = local.logins

  password_length     = 40
  exclude_punctuation = true # it is part of a URL
}

# What churn/deployment/credentials.py reads: username, password, host, port. The rest is for those who need a URL. Each
# service's TLS settings are in its environment.
resource "aws_secretsmanager_secret" "login" {
  # checkov:skip=CKV2_AWS_57: changed by raising password_version, since services take up a new password by a restart
  for_each = local.logins

  name                    = "${var.name}/${each.key}"
  description             = "Login ${each.key} of ${var.name}'s PostgreSQL, for ${each.value}."
  kms_key_id              = aws_kms_key.this.arn
  recovery_window_in_days = var.recovery_window_days
}

resource "aws_secretsmanager_secret_version" "login" {
  for_each = local.logins

  secret_id                = aws_secretsmanager_secret.login[each.key].id
  secret_string_wo_version = var.password_version
  secret_string_wo = jsonencode({
    username = each.key
    password = ephemeral.aws_secretsmanager_random_password.login[each.key].random_password
    host     = var.database_host
    port     = var.database_port
    url = format(
      "postgresql://%s:%s@%s:%d/%s%s", # pragma: allowlist secret
      each.key,
      ephemeral.aws_secretsmanager_random_password.login[each.key].random_password,
      var.database_host,
      var.database_port,
      each.value,
      # A crash of the server could lose the last events of Dagster's log, never a prediction.
      each.key == "dagster" ? "?options=-c%20synchronous_commit%3Doff" : "",
    )
  })
}

# CHURN_ALERT_URLS, put in by hand: they are somebody else's secrets.
resource "aws_secretsmanager_secret" "alert_urls" {
  # checkov:skip=CKV2_AWS_57: the receivers make these URLs
  name                    = "${var.name}/alert-urls"
  description             = "Apprise URLs of who is alerted, separated by spaces."
  kms_key_id              = aws_kms_key.this.arn
  recovery_window_in_days = var.recovery_window_days
}
