bucket = "example-churn-terraform-production"
key    = "churn/production.tfstate"
region = "us-east-1"
