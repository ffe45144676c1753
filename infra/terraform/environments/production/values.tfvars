environment      = "production"
region           = "us-east-1"
protected        = true
highly_available = true

cidr_block         = "10.21.0.0/16"
zones              = ["us-east-1a", "us-east-1b", "us-east-1c"]
domain             = "churn.example.com"
certificate_arn    = "arn:aws:acm:us-east-1:222222222222:certificate/00000000-0000-0000-0000-000000000000"
client_cidr_blocks = ["10.0.0.0/16"]

bucket                  = "example-churn-production"
noncurrent_version_days = 30

database_instance_class  = "db.m7g.xlarge"
database_storage_gib     = 500
database_max_storage_gib = 4000
database_ca_file         = "rds-ca.pem"
backup_retention_days    = 30

service_sizes = {
  code    = { cpu = 8192, memory = 32768 }
  daemon  = { cpu = 1024, memory = 2048 }
  dagster = { cpu = 1024, memory = 2048 }
  mlflow  = { cpu = 1024, memory = 2048 }
}
settings = { CHURN_LOCAL_FALLBACK = "never" }

alarm_emails       = ["churn-alarms@example.com"]
log_retention_days = 365
