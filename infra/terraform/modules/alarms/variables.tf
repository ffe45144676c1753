variable "name" {
  description = "What names begin with."
  type        = string
}

variable "kms_key_arn" {
  description = "Key that encrypts the topic; it lets CloudWatch use it."
  type        = string
}

variable "emails" {
  description = "Who is told."
  type        = set(string)
}

variable "database_id" {
  description = "The database's name in CloudWatch."
  type        = string
}

variable "database_storage_gib" {
  description = "Its storage at first, GiB."
  type        = number
}

variable "cluster_name" {
  description = "The ECS cluster, which must have Container Insights."
  type        = string
}

variable "service_names" {
  description = "Services of which a task must run at all times."
  type        = list(string)
}

variable "load_balancer_suffix" {
  description = "The load balancer's name in CloudWatch."
  type        = string
}

variable "target_group_suffixes" {
  description = "Each UI's target group's name in CloudWatch."
  type        = map(string)
}
