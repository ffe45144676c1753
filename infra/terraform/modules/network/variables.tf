variable "name" {
  description = "What names begin with."
  type        = string
}

variable "cidr_block" {
  description = "Addresses of the VPC."
  type        = string
}

variable "zones" {
  description = "Availability zones in use, in the order of their blocks of addresses."
  type        = list(string)
}

variable "nat_per_zone" {
  description = "Whether each zone has a NAT gateway of its own; otherwise the first one's serves all."
  type        = bool
}

variable "log_retention_days" {
  description = "Days for which flow logs are kept."
  type        = number
}

variable "kms_key_arn" {
  description = "Key that encrypts flow logs."
  type        = string
}
