variable "environment" {
  description = "Name of the environment, part of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,15}$", var.environment))
    error_message = "An environment is named by 2 to 16 lower-case letters and digits, such as staging."
  }
}

variable "region" {
  description = "AWS region of everything."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "A region such as us-east-1 is needed."
  }
}

variable "image" {
  description = "The image of all services, by digest: REGISTRY/NAME@sha256:DIGEST."
  type        = string

  validation {
    condition     = can(regex("@sha256:[0-9a-f]{64}$", var.image))
    error_message = "An image is named by its digest (…@sha256:…): a tag can be moved."
  }
}

variable "registry_secret_arn" {
  description = "Secrets Manager secret {\"username\": …, \"password\": …} that the image's registry asks for; null: none, or ECR."
  type        = string
  default     = null
}

variable "started" {
  description = "Whether services run. The first time: false, then make the databases, then true (docs/cloud.md)."
  type        = bool
  default     = true
}

variable "protected" {
  description = "Whether the database, the bucket's secrets and the load balancer resist deletion."
  type        = bool
}

variable "highly_available" {
  description = "Whether the database has a standby and each zone its own way out."
  type        = bool
}

variable "cidr_block" {
  description = "Addresses of the VPC, a /16 to /20."
  type        = string

  validation {
    condition     = can(cidrhost(var.cidr_block, 0)) && try(tonumber(split("/", var.cidr_block)[1]), 0) >= 16 && try(tonumber(split("/", var.cidr_block)[1]), 99) <= 20
    error_message = "A block from /16 to /20 is needed, such as 10.20.0.0/16."
  }
}

variable "zones" {
  description = "Availability zones in use, named: a zone that is added must not move the others' addresses."
  type        = list(string)

  validation {
    condition     = length(distinct(var.zones)) == length(var.zones) && length(var.zones) >= 2 && length(var.zones) <= 4
    error_message = "From 2 to 4, each once: the load balancer and the database need two."
  }
}

variable "domain" {
  description = "Domain of the UIs, which are dagster.DOMAIN and mlflow.DOMAIN."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9-]+\\.)+[a-z]{2,}$", var.domain))
    error_message = "A domain such as churn.example.com is needed."
  }
}

variable "certificate_arn" {
  description = "ACM certificate of both UIs' names, in the same region."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:acm:", var.certificate_arn))
    error_message = "An ACM certificate's ARN is needed."
  }
}

variable "client_cidr_blocks" {
  description = "Private addresses from which people reach the UIs, which ask for no password: the VPN's."
  type        = set(string)

  validation {
    condition     = length(var.client_cidr_blocks) > 0 && alltrue([for block in var.client_cidr_blocks : can(cidrhost(block, 0)) && try(tonumber(split("/", block)[1]), 0) >= 8])
    error_message = "At least one block, none wider than /8: whoever reaches the UIs may launch jobs and move aliases."
  }
}

variable "bucket" {
  description = "Bucket of variants' files and MLflow's artifacts; its logs are in BUCKET-logs."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,56}[a-z0-9]$", var.bucket))
    error_message = "From 3 to 58 lower-case letters, digits and hyphens."
  }
}

variable "noncurrent_version_days" {
  description = "Days for which a replaced or deleted object can be had back; erased accounts are in such versions, too."
  type        = number

  validation {
    condition     = var.noncurrent_version_days >= 1 && var.noncurrent_version_days <= 90
    error_message = "From 1 to 90: a promise to erase is kept when the last version is gone."
  }
}

variable "database_engine_version" {
  description = "Version of PostgreSQL; a major one takes its minor ones in the maintenance window."
  type        = string
  default     = "18"

  validation {
    condition     = can(regex("^1[4-8](\\.[0-9]+)?$", var.database_engine_version))
    error_message = "PostgreSQL 14 to 18."
  }
}

variable "database_instance_class" {
  description = "Size of the database."
  type        = string

  validation {
    condition     = can(regex("^db\\.", var.database_instance_class))
    error_message = "A class such as db.t4g.medium is needed."
  }
}

variable "database_storage_gib" {
  description = "Storage of the database at first, GiB."
  type        = number

  validation {
    condition     = var.database_storage_gib >= 20
    error_message = "20 or more."
  }
}

variable "database_max_storage_gib" {
  description = "Storage up to which the database grows by itself, GiB."
  type        = number

  validation {
    condition     = var.database_max_storage_gib > var.database_storage_gib
    error_message = "More than database_storage_gib."
  }
}

variable "database_ca_file" {
  description = "File with the region's RDS certificate authorities, against which every connection is verified."
  type        = string
}

variable "backup_retention_days" {
  description = "Days for which the database can be restored to any moment; erased accounts are in backups, too."
  type        = number

  validation {
    condition     = var.backup_retention_days >= 1 && var.backup_retention_days <= 35
    error_message = "From 1 to 35."
  }
}

variable "password_version" {
  description = "Raise it to make new passwords of all logins; then run the databases task and restart the services."
  type        = number
  default     = 1

  validation {
    condition     = var.password_version >= 1 && floor(var.password_version) == var.password_version
    error_message = "A whole number from 1."
  }
}

variable "send_alerts" {
  description = "Whether incidents go to the URLs in the secret NAME/alert-urls, which must hold some by then."
  type        = bool
  default     = false
}

variable "alarm_emails" {
  description = "Who is told of AWS's alarms; each address must confirm once."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for address in var.alarm_emails : can(regex("^[^@ ]+@[^@ ]+$", address))])
    error_message = "Addresses of mail are needed."
  }
}

variable "service_sizes" {
  description = "CPU units and memory (MiB) of each service, in Fargate's combinations."
  type        = map(object({ cpu = number, memory = number }))

  validation {
    condition     = toset(keys(var.service_sizes)) == toset(["code", "daemon", "dagster", "mlflow"])
    error_message = "Sizes of code, daemon, dagster and mlflow are needed."
  }
}

variable "uploaders" {
  description = "Prefixes below which each partner may write extracts, by name: acme = [\"company-acme\", \"geography-us/company-acme\"]."
  type        = map(list(string))
  default     = {}

  validation {
    condition = alltrue([
      for prefix in flatten(values(var.uploaders)) :
      can(regex("^(geography-[a-z0-9]+(_[a-z0-9]+)*/)?company-[a-z0-9]+(_[a-z0-9]+)*$", prefix))
    ])
    error_message = "Prefixes are those of companies: company-acme, geography-us/company-acme."
  }
}

variable "settings" {
  description = "Settings of .env.example that say how to score, learn, watch and keep, by name."
  type        = map(string)
  default     = {}

  validation {
    condition = alltrue([
      for name in keys(var.settings) : startswith(name, "CHURN_") && !endswith(name, "_DATABASE_URL") && !contains(
        ["CHURN_ALERT_URLS", "CHURN_HOME", "CHURN_LOCAL_ROOT", "CHURN_POSTGRES_BIN"], name
      )
    ])
    error_message = "Names begin with CHURN_; where things are, and secrets, are not set here."
  }
}

variable "log_retention_days" {
  description = "Days for which logs are kept."
  type        = number

  validation {
    condition     = contains([365, 400, 545, 731], var.log_retention_days)
    error_message = "365, 400, 545 or 731: an incident may be looked into a year later."
  }
}
