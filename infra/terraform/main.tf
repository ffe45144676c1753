# One deployment. Environments differ by values alone: environments/NAME/values.tfvars.

locals {
  name = "churn-${var.environment}"
}

module "network" {
  source = "./modules/network"

  name               = local.name
  cidr_block         = var.cidr_block
  zones              = var.zones
  nat_per_zone       = var.highly_available
  log_retention_days = var.log_retention_days
  kms_key_arn        = module.secrets.kms_key_arn
}

module "secrets" {
  source = "./modules/secrets"

  name                 = local.name
  database_host        = module.database.host
  database_port        = module.database.port
  password_version     = var.password_version
  recovery_window_days = var.protected ? 30 : 7
}

module "database" {
  source = "./modules/database"

  name                    = local.name
  vpc_id                  = module.network.vpc_id
  subnet_ids              = module.network.database_subnet_ids
  client_security_groups  = module.services.database_client_security_groups
  kms_key_arn             = module.secrets.kms_key_arn
  engine_version          = var.database_engine_version
  instance_class          = var.database_instance_class
  allocated_storage_gib   = var.database_storage_gib
  max_storage_gib         = var.database_max_storage_gib
  multi_az                = var.highly_available
  deletion_protection     = var.protected
  backup_retention_days   = var.backup_retention_days
  log_retention_days      = var.log_retention_days
  performance_report_days = var.protected ? 31 : 7
}

module "artifacts" {
  source = "./modules/artifacts"

  bucket                  = var.bucket
  uploaders               = var.uploaders
  kms_key_arn             = module.secrets.kms_key_arn
  noncurrent_version_days = var.noncurrent_version_days
  log_retention_days      = var.log_retention_days
}

module "services" {
  source = "./modules/services"

  name               = local.name
  region             = var.region
  image              = var.image
  registry_secret    = var.registry_secret_arn
  domain             = var.domain
  certificate_arn    = var.certificate_arn
  client_cidr_blocks = var.client_cidr_blocks
  started            = var.started
  sizes              = var.service_sizes
  settings           = var.settings
  log_retention_days = var.log_retention_days
  protected          = var.protected

  vpc_id     = module.network.vpc_id
  subnet_ids = module.network.private_subnet_ids

  bucket      = module.artifacts.bucket
  bucket_arn  = module.artifacts.bucket_arn
  log_bucket  = module.artifacts.log_bucket
  kms_key_arn = module.secrets.kms_key_arn

  database_host              = module.database.host
  database_port              = module.database.port
  database_security_group_id = module.database.security_group_id
  database_ca                = file(var.database_ca_file)
  master_secret_arn          = module.database.master_secret_arn
  login_secrets              = module.secrets.logins
  alert_secret_arn           = var.send_alerts ? module.secrets.alert_urls.arn : null
}

module "alarms" {
  source = "./modules/alarms"

  name                  = local.name
  kms_key_arn           = module.secrets.kms_key_arn
  emails                = var.alarm_emails
  database_id           = module.database.id
  database_storage_gib  = var.database_storage_gib
  cluster_name          = module.services.cluster_name
  service_names         = var.started ? module.services.service_names : []
  load_balancer_suffix  = module.services.load_balancer_suffix
  target_group_suffixes = module.services.target_group_suffixes
}
