environment      = "staging"
region           = "us-east-1"
protected        = false
highly_available = false

cidr_block         = "10.20.0.0/16"
zones              = ["us-east-1a", "us-east-1b"]
domain             = "staging.churn.example.com"
certificate_arn    = "arn:aws:acm:us-east-1:111111111111:certificate/00000000-0000-0000-0000-000000000000"
client_cidr_blocks = ["10.0.0.0/16"]

bucket                  = "example-churn-staging"
noncurrent_version_days = 7

database_instance_class  = "db.t4g.medium"
database_storage_gib     = 50
database_max_storage_gib = 200
database_ca_file         = "rds-ca.pem"
backup_retention_days    = 7

service_sizes = {
  code    = { cpu = 2048, memory = 8192 }
  daemon  = { cpu = 512, memory = 1024 }
  dagster = { cpu = 512, memory = 1024 }
  mlflow  = { cpu = 512, memory = 2048 }
}
settings = { CHURN_LOCAL_FALLBACK = "never" }

alarm_emails       = []
log_retention_days = 365
