bucket = "example-churn-terraform-staging"
key    = "churn/staging.tfstate"
region = "us-east-1"
