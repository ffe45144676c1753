variable "name" {
  description = "What names begin with."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "image" {
  description = "The image of all services, by digest."
  type        = string
}

variable "registry_secret" {
  description = "ARN of the secret that the image's registry asks for; null: none."
  type        = string
}

variable "domain" {
  description = "Domain of the UIs."
  type        = string
}

variable "certificate_arn" {
  description = "Certificate of the UIs."
  type        = string
}

variable "client_cidr_blocks" {
  description = "Addresses from which people reach the UIs."
  type        = set(string)
}

variable "started" {
  description = "Whether services run."
  type        = bool
}

variable "protected" {
  description = "Whether the load balancer resists deletion."
  type        = bool
}

variable "sizes" {
  description = "CPU units and memory (MiB) of each service."
  type        = map(object({ cpu = number, memory = number }))
}

variable "settings" {
  description = "Further settings of the code, by name."
  type        = map(string)
}

variable "log_retention_days" {
  description = "Days for which logs are kept."
  type        = number
}

variable "vpc_id" {
  description = "Where everything is."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of tasks and the load balancer."
  type        = list(string)
}

variable "bucket" {
  description = "Bucket of variants' files and MLflow's artifacts."
  type        = string
}

variable "bucket_arn" {
  description = "Its ARN."
  type        = string
}

variable "log_bucket" {
  description = "Bucket of the load balancer's access logs."
  type        = string
}

variable "kms_key_arn" {
  description = "Key of the bucket, the secrets and the logs."
  type        = string
}

variable "database_host" {
  description = "Host of PostgreSQL, as its certificate names it."
  type        = string
}

variable "database_port" {
  description = "Its port."
  type        = number
}

variable "database_security_group_id" {
  description = "Its security group."
  type        = string
}

variable "database_ca" {
  description = "Certificate authorities of RDS, PEM."
  type        = string

  validation {
    condition     = startswith(trimspace(var.database_ca), "-----BEGIN CERTIFICATE-----") && length(var.database_ca) < 32768
    error_message = "The region's bundle is needed, less than 32 KiB of PEM: docs/cloud.md says where it is."
  }
}

variable "master_secret_arn" {
  description = "The administrator's secret."
  type        = string
}

variable "login_secrets" {
  description = "ARN and name of the secrets of the logins churn, mlflow, dagster and watch."
  type        = map(object({ arn = string, name = string }))
}

variable "alert_secret_arn" {
  description = "Secret of CHURN_ALERT_URLS; null: nobody is alerted."
  type        = string
}
