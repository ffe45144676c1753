terraform {
  required_version = ">= 1.11.4, < 2.0.0" # write-only arguments keep passwords out of the state

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }

  # Which bucket and key: environments/NAME/backend.hcl.
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      Project     = "churn"
      Environment = var.environment
      ManagedBy   = "terraform"
    }
  }
}
