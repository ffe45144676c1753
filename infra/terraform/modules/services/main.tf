# The services of docker-compose.yml on Fargate: the same image, commands and health checks, without PostgreSQL and S3.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  dagster_host = "dagster.${var.domain}"
  mlflow_host  = "mlflow.${var.domain}"
  code_host    = "code.${aws_service_discovery_private_dns_namespace.this.name}"

  tls = {
    PGSSLMODE     = "verify-full"
    PGSSLROOTCERT = "/opt/dagster/rds-ca.pem"
  }
  # Whoever creates a run plans it, which is the daemon or the webserver.
  dagster_environment = merge(local.tls, {
    CHURN_CONCURRENT_RUNS                           = lookup(var.settings, "CHURN_CONCURRENT_RUNS", "2")
    DAGSTER_DISABLE_TELEMETRY                       = "yes"
    DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS = "1"
  })
  dagster_secrets = { CHURN_DAGSTER_DATABASE_URL = "${var.login_secrets["dagster"].arn}:url::" }

  # What the code needs that scores, trains and sets up.
  code_environment = merge(local.dagster_environment, var.settings, {
    AWS_DEFAULT_REGION    = var.region
    CHURN_DAGSTER_DB_NAME = "dagster_db"
    CHURN_DB_NAME         = "churn_db"
    CHURN_MLFLOW_UI_URL   = "https://${local.mlflow_host}"
    MLFLOW_S3_BUCKET      = var.bucket
    MLFLOW_SECRET_NAME    = var.login_secrets["churn"].name
    MLFLOW_SECRET_REGION  = var.region
  })
  code_secrets = merge(
    local.dagster_secrets,
    { MLFLOW_TRACKING_URI = "${var.login_secrets["mlflow"].arn}:url::" },
    var.alert_secret_arn == null ? {} : { CHURN_ALERT_URLS = var.alert_secret_arn },
  )

  # Its login alone makes tables, erases and makes readers; no service has it.
  setup_secrets = merge(local.code_secrets, {
    CHURN_READER_DATABASE_URL = "${var.login_secrets["analyst"].arn}:url::"
    CHURN_SETUP_DATABASE_URL  = "${var.login_secrets["setup"].arn}:url::"
  })

  is_healthy = "import urllib.request as r; r.urlopen('http://127.0.0.1:%d/%s', timeout=4)"

  services = {
    mlflow = {
      command = [
        "mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1", "--allowed-hosts", local.mlflow_host,
        "--cors-allowed-origins", "https://${local.mlflow_host}", "--artifacts-destination", "s3://${var.bucket}/mlflow",
      ]
      environment = merge(local.tls, {
        AWS_DEFAULT_REGION                 = var.region
        MLFLOW_DISABLE_TELEMETRY           = "true"
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION = "false"
      })
      secrets      = { MLFLOW_BACKEND_STORE_URI = "${var.login_secrets["mlflow"].arn}:url::" }
      health       = ["CMD", "python", "-c", format(local.is_healthy, 5000, "health")]
      port         = 5000
      stop_seconds = 30
      calls        = []
    }
    dagster = {
      command      = ["python", "-m", "orchestration.webserver", "--host", "0.0.0.0", "--workspace", "/opt/dagster/workspace.yaml"]
      environment  = merge(local.dagster_environment, { CHURN_ALLOWED_HOSTS = local.dagster_host })
      secrets      = local.dagster_secrets
      health       = ["CMD", "python", "-c", format(local.is_healthy, 3000, "server_info")]
      port         = 3000
      stop_seconds = 30
      calls        = ["code"]
    }
    daemon = {
      command      = ["dagster-daemon", "run", "--workspace", "/opt/dagster/workspace.yaml"]
      environment  = local.dagster_environment
      secrets      = local.dagster_secrets
      health       = ["CMD", "dagster-daemon", "liveness-check"]
      port         = null
      stop_seconds = 30
      calls        = ["code"]
    }
    # Runs are processes of this task: Dagster's default launcher starts them where the code is.
    code = {
      command = [
        "dagster", "api", "grpc", "--host", "0.0.0.0", "--port", "4000", "--module-name", "orchestration.definitions",
        "--location-name", "churn",
      ]
      environment  = local.code_environment
      secrets      = local.code_secrets
      health       = ["CMD", "dagster", "api", "grpc-health-check", "--port", "4000"]
      port         = 4000
      stop_seconds = 120
      calls        = []
    }
  }

  # Of these, two at once would be wrong: two daemons launch twice, and a new code location must not be mixed with the
  # old one. They stop before the next starts.
  single = ["code", "daemon"]

  uis = {
    mlflow  = { host = local.mlflow_host, health = "/health" }
    dagster = { host = local.dagster_host, health = "/server_info" }
  }
}

resource "aws_ecs_cluster" "this" {
  name = var.name

  setting {
    name  = "containerInsights"
    value = "enabled"
  }

  depends_on = [aws_cloudwatch_log_group.insights]
}

resource "aws_service_discovery_private_dns_namespace" "this" {
  name        = "${var.name}.internal"
  description = "Where Dagster finds the code location"
  vpc         = var.vpc_id
}

resource "aws_service_discovery_service" "code" {
  name = "code"

  dns_config {
    namespace_id   = aws_service_discovery_private_dns_namespace.this.id
    routing_policy = "MULTIVALUE"

    dns_records {
      type = "A"
      ttl  = 10
    }
  }
}

resource "aws_ecs_service" "this" {
  for_each = local.services

  name                               = each.key
  cluster                            = aws_ecs_cluster.this.id
  task_definition                    = aws_ecs_task_definition.service[each.key].arn
  launch_type                        = "FARGATE"
  platform_version                   = "LATEST"
  desired_count                      = var.started ? 1 : 0
  deployment_minimum_healthy_percent = contains(local.single, each.key) ? 0 : 100
  deployment_maximum_percent         = contains(local.single, each.key) ? 100 : 200
  health_check_grace_period_seconds  = contains(keys(local.uis), each.key) ? 180 : null
  propagate_tags                     = "SERVICE"
  wait_for_steady_state              = var.started

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.service[each.key].id]
    assign_public_ip = false
  }

  dynamic "load_balancer" {
    for_each = contains(keys(local.uis), each.key) ? [each.value.port] : []

    content {
      target_group_arn = aws_lb_target_group.ui[each.key].arn
      container_name   = each.key
      container_port   = load_balancer.value
    }
  }

  dynamic "service_registries" {
    for_each = each.key == "code" ? [aws_service_discovery_service.code.arn] : []

    content {
      registry_arn = service_registries.value
    }
  }

  depends_on = [aws_lb_listener_rule.ui, aws_iam_role_policy.execution, aws_iam_role_policy.task]
}
