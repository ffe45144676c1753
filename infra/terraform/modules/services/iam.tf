# Two roles for each task: the execution role, with which ECS starts it, may read the secrets of that task's
# environment; the task role is what its programs are. Neither may do more than is listed here.

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ecs-tasks.amazonaws.com"]
    }
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

locals {
  # A secret's key is named behind its ARN: ARN:KEY:: .
  injected = merge(
    # The task of the code begins with set-up.
    { for name, service in local.services : name => values(name == "code" ? local.setup_secrets : service.secrets) },
    { setup = values(local.setup_secrets), databases = values(local.database_task_secrets) },
  )
  injected_arns = { for name, sources in local.injected : name => distinct(concat(
    [for source in sources : join(":", slice(split(":", source), 0, 7))],
    var.registry_secret == null ? [] : [var.registry_secret],
  )) }
  ecr = regexall("^([0-9]{12})\\.dkr\\.ecr\\.([a-z0-9-]+)\\.[^/]+/([^@:]+)", var.image)
}

data "aws_iam_policy_document" "execution" {
  for_each = local.injected_arns

  statement {
    sid       = "Logs"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.task[each.key].arn}:*"]
  }

  statement {
    sid       = "SecretsOfItsEnvironment"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = each.value
  }

  statement {
    sid       = "TheirKey"
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["secretsmanager.${var.region}.amazonaws.com"]
    }
  }

  dynamic "statement" {
    for_each = local.ecr

    content {
      sid     = "Image"
      actions = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"]
      resources = [
        "arn:${data.aws_partition.current.partition}:ecr:${statement.value[1]}:${statement.value[0]}:repository/${statement.value[2]}"
      ]
    }
  }

  dynamic "statement" {
    for_each = local.ecr

    content {
      sid       = "Registry"
      actions   = ["ecr:GetAuthorizationToken"]
      resources = ["*"] # it knows no narrower one
    }
  }
}

resource "aws_iam_role" "execution" {
  for_each = local.injected_arns

  name               = "${var.name}-${each.key}-execution"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "execution" {
  for_each = local.injected_arns

  name   = "start"
  role   = aws_iam_role.execution[each.key].id
  policy = data.aws_iam_policy_document.execution[each.key].json
}

resource "aws_iam_role" "task" {
  for_each = toset(concat(keys(local.services), ["databases"]))

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

locals {
  mlflow_objects  = ["${var.bucket_arn}/mlflow/*", "${var.bucket_arn}/*/mlflow/*"]
  history_objects = ["${var.bucket_arn}/history/*", "${var.bucket_arn}/*/history/*"]
  delivery        = regexall("^s3://([^/]+)/(.*[^/])", lookup(var.settings, "CHURN_DELIVERY_PREFIX", ""))
  policies        = { code = data.aws_iam_policy_document.code.json, mlflow = data.aws_iam_policy_document.mlflow.json }
}

# SECURITY.md, "AWS": reads the bucket, writes models, histories and what is delivered, removes parts of histories that were folded or held an erased account, and what was delivered.
data "aws_iam_policy_document" "code" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket", "s3:ListBucketVersions"]
    resources = [var.bucket_arn]
  }

  statement {
    sid       = "Read"
    actions   = ["s3:GetObject", "s3:GetObjectVersion"]
    resources = ["${var.bucket_arn}/*"]
  }

  statement {
    sid       = "Write"
    actions   = ["s3:PutObject", "s3:AbortMultipartUpload"]
    resources = concat(local.mlflow_objects, local.history_objects)
  }

  statement {
    sid       = "Erase"
    actions   = ["s3:DeleteObject", "s3:DeleteObjectVersion"]
    resources = concat(local.mlflow_objects, local.history_objects) # old model versions, too
  }

  # Of another bucket, its owner must allow the same, and the use of its key.
  dynamic "statement" {
    for_each = local.delivery

    content {
      sid       = "ListDelivered"
      actions   = ["s3:ListBucket", "s3:ListBucketVersions"]
      resources = ["arn:${data.aws_partition.current.partition}:s3:::${statement.value[0]}"]
      condition {
        test     = "StringLike"
        variable = "s3:prefix"
        values   = ["${statement.value[1]}/*"]
      }
    }
  }

  dynamic "statement" {
    for_each = local.delivery

    content {
      sid       = "Deliver"
      actions   = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:DeleteObjectVersion"]
      resources = ["arn:${data.aws_partition.current.partition}:s3:::${statement.value[0]}/${statement.value[1]}/*"]
    }
  }

  statement {
    sid       = "Login"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [var.login_secrets["churn"].arn]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms_key_arn]
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com", "secretsmanager.${var.region}.amazonaws.com"]
    }
  }
}

# MLflow's server shows artifacts, and takes them from people who log models through it.
data "aws_iam_policy_document" "mlflow" {
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [var.bucket_arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["mlflow", "mlflow/*", "*/mlflow", "*/mlflow/*"]
    }
  }

  statement {
    sid       = "Artifacts"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    resources = local.mlflow_objects
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms_key_arn]
    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

# The others, Dagster's server and daemon and the databases task, ask AWS for nothing.
resource "aws_iam_role_policy" "task" {
  for_each = local.policies

  name   = "work"
  role   = aws_iam_role.task[each.key].id
  policy = each.value
}
