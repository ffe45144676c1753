variable "name" {
  description = "What names begin with."
  type        = string
}

variable "database_host" {
  description = "Host of PostgreSQL, as its certificate names it."
  type        = string
}

variable "database_port" {
  description = "Port of PostgreSQL."
  type        = number
}

variable "password_version" {
  description = "A higher number makes new passwords."
  type        = number
}

variable "recovery_window_days" {
  description = "Days for which a deleted secret can be had back."
  type        = number
}
