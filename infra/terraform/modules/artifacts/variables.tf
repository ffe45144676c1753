variable "bucket" {
  description = "Name of the bucket; BUCKET-logs is the one of access logs."
  type        = string
}

variable "kms_key_arn" {
  description = "Key that encrypts the bucket."
  type        = string
}

variable "uploaders" {
  description = "Prefixes below which each partner may write extracts, by the partner's name."
  type        = map(list(string))
}

variable "noncurrent_version_days" {
  description = "Days for which a replaced or deleted object can be had back."
  type        = number
}

variable "log_retention_days" {
  description = "Days for which access logs are kept."
  type        = number
}
