# Task definitions. Each begins with `files`, which ends before the rest starts: the only container that is root, it
# hands the volumes to the image's user and puts there what Compose mounts.

locals {
  workspace = yamlencode({
    load_from = [{ grpc_server = { host = local.code_host, port = 4000, location_name = "churn" } }]
  })
  # What runs print goes to CloudWatch, as everything does; the image's folder is not shared between tasks.
  instance = yamlencode({
    compute_logs = { module = "dagster._core.storage.noop_compute_log_manager", class = "NoOpComputeLogManager" }
  })

  volumes = { tmp = "/tmp", home = "/var/lib/churn", dagster = "/opt/dagster" }
  mounts  = [for name, path in local.volumes : { sourceVolume = name, containerPath = path, readOnly = false }]

  log_options = {
    for name in concat(keys(local.services), ["databases", "setup"]) : name => {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.task[name].name
        awslogs-region        = var.region
        awslogs-stream-prefix = "task"
      }
    }
  }
  registry = var.registry_secret == null ? {} : { repositoryCredentials = { credentialsParameter = var.registry_secret } }

  hardened = merge(local.registry, {
    image                  = var.image
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    linuxParameters        = { initProcessEnabled = true, capabilities = { drop = ["ALL"] } }
    mountPoints            = local.mounts
  })

  files = merge(local.registry, {
    name                   = "files"
    image                  = var.image
    essential              = false
    user                   = "0"
    readonlyRootFilesystem = true
    command                = ["sh", "-ec", file("${path.module}/files.sh")]
    mountPoints = [for name, path in local.volumes : {
      sourceVolume = name, containerPath = "/mnt/${name}", readOnly = false
    }]
    environment = [for key, value in {
      DATABASE_CA = var.database_ca
      INSTANCE    = local.instance
      WORKSPACE   = local.workspace
    } : { name = key, value = value }]
  })
  after_files = [{ containerName = "files", condition = "SUCCESS" }]

  environment = { for name, service in local.services : name => [
    for key, value in service.environment : { name = key, value = value }
  ] }
  secrets = { for name, service in local.services : name => [
    for key, source in service.secrets : { name = key, valueFrom = source }
  ] }

  # As in Compose, tables are made and migrated before the code that uses them starts; safe to run again.
  setup = merge(local.hardened, {
    name        = "setup"
    essential   = false
    command     = ["python", "-m", "experiment_tracking.setup"]
    environment = local.environment["code"]
    secrets     = [for key, source in local.setup_secrets : { name = key, valueFrom = source }]
    dependsOn   = local.after_files
  })
}

resource "aws_ecs_task_definition" "service" {
  for_each = local.services

  family                   = "${var.name}-${each.key}"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.sizes[each.key].cpu
  memory                   = var.sizes[each.key].memory
  execution_role_arn       = aws_iam_role.execution[each.key].arn
  task_role_arn            = aws_iam_role.task[each.key].arn

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "X86_64"
  }

  dynamic "volume" {
    for_each = local.volumes

    content {
      name = volume.key
    }
  }

  container_definitions = jsonencode(concat(
    [merge(local.files, { logConfiguration = local.log_options[each.key] })],
    each.key == "code" ? [merge(local.setup, { logConfiguration = local.log_options[each.key] })] : [],
    [merge(local.hardened, {
      name         = each.key
      essential    = true
      command      = each.value.command
      environment  = local.environment[each.key]
      secrets      = local.secrets[each.key]
      portMappings = each.value.port == null ? [] : [{ containerPort = each.value.port, hostPort = each.value.port, protocol = "tcp" }]
      stopTimeout  = each.value.stop_seconds
      dependsOn    = each.key == "code" ? [{ containerName = "setup", condition = "SUCCESS" }] : local.after_files
      healthCheck = {
        command     = each.value.health
        interval    = 60
        timeout     = 20
        retries     = 3
        startPeriod = 180
      }
      logConfiguration = local.log_options[each.key]
    })],
  ))
}

# Any command of ours, by hand: `aws ecs run-task` with an override of the command (docs/cloud.md).
resource "aws_ecs_task_definition" "setup" {
  family                   = "${var.name}-setup"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.sizes["code"].cpu
  memory                   = var.sizes["code"].memory
  execution_role_arn       = aws_iam_role.execution["setup"].arn
  task_role_arn            = aws_iam_role.task["code"].arn

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "X86_64"
  }

  dynamic "volume" {
    for_each = local.volumes

    content {
      name = volume.key
    }
  }

  container_definitions = jsonencode([
    merge(local.files, { logConfiguration = local.log_options["setup"] }),
    merge(local.setup, { essential = true, logConfiguration = local.log_options["setup"] }),
  ])
}

# Logins and databases, as the administrator, whose password no other task is given.
resource "aws_ecs_task_definition" "databases" {
  family                   = "${var.name}-databases"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = 256
  memory                   = 512
  execution_role_arn       = aws_iam_role.execution["databases"].arn
  task_role_arn            = aws_iam_role.task["databases"].arn

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "X86_64"
  }

  dynamic "volume" {
    for_each = local.volumes

    content {
      name = volume.key
    }
  }

  container_definitions = jsonencode([
    merge(local.files, { logConfiguration = local.log_options["databases"] }),
    merge(local.hardened, {
      name      = "databases"
      essential = true
      command   = ["python", "-c", file("${path.module}/databases.py")]
      environment = [for key, value in merge(local.tls, {
        PGHOST = var.database_host
        PGPORT = tostring(var.database_port)
      }) : { name = key, value = value }]
      secrets = [for key, source in local.database_task_secrets : { name = key, valueFrom = source }]

      dependsOn        = local.after_files
      logConfiguration = local.log_options["databases"]
    }),
  ])
}

locals {
  database_task_secrets = merge(
    { PGUSER = "${var.master_secret_arn}:username::", PGPASSWORD = "${var.master_secret_arn}:password::" },
    { for login, secret in var.login_secrets : "${upper(login)}_DB_PASSWORD" => "${secret.arn}:password::" },
  )
}
