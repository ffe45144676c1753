variable "name" {
  description = "The server's name, and what other names begin with."
  type        = string
}

variable "vpc_id" {
  description = "Where the server is."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets without a way out, in two zones or more."
  type        = list(string)
}

variable "client_security_groups" {
  description = "Security groups that may connect, by who they are."
  type        = map(string)
}

variable "kms_key_arn" {
  description = "Key that encrypts storage, snapshots, logs and the administrator's secret."
  type        = string
}

variable "engine_version" {
  description = "Version of PostgreSQL."
  type        = string
}

variable "instance_class" {
  description = "Size of the server."
  type        = string
}

variable "allocated_storage_gib" {
  description = "Storage at first, GiB."
  type        = number
}

variable "max_storage_gib" {
  description = "Storage up to which it grows, GiB."
  type        = number
}

variable "multi_az" {
  description = "Whether a standby in another zone takes over."
  type        = bool
}

variable "deletion_protection" {
  description = "Whether the server resists deletion."
  type        = bool
}

variable "backup_retention_days" {
  description = "Days for which it can be restored to any moment."
  type        = number
}

variable "log_retention_days" {
  description = "Days for which its logs are kept."
  type        = number
}

variable "performance_report_days" {
  description = "Days for which Performance Insights are kept: 7, or a multiple of 31."
  type        = number
}
