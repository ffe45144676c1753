output "load_balancer" {
  description = "DNS name that dagster.DOMAIN and mlflow.DOMAIN must point to."
  value       = module.services.load_balancer_dns_name
}

output "cluster" {
  description = "ECS cluster, for aws ecs run-task."
  value       = module.services.cluster_name
}

output "task_definitions" {
  description = "Tasks that are run by hand: databases makes logins, setup runs any command."
  value       = module.services.task_definitions
}

output "task_network" {
  description = "Value of run-task's --network-configuration."
  value       = module.services.task_network
}

output "database_host" {
  description = "Host of PostgreSQL."
  value       = module.database.host
}

output "master_secret" {
  description = "ARN of the administrator's secret, which RDS makes and rotates."
  value       = module.database.master_secret_arn
}

output "login_secrets" {
  description = "Name of each login's secret."
  value       = { for login, secret in module.secrets.logins : login => secret.name }
}

output "alert_secret" {
  description = "Name of the secret for CHURN_ALERT_URLS; put the URLs into it, then set send_alerts."
  value       = module.secrets.alert_urls.name
}

output "bucket" {
  description = "Bucket of variants' files and MLflow's artifacts."
  value       = module.artifacts.bucket
}

output "uploader_policies" {
  description = "ARN of the policy of each partner's uploader; attach it to the partner's role."
  value       = module.artifacts.uploader_policies
}

output "alarm_topic" {
  description = "SNS topic of the alarms."
  value       = module.alarms.topic_arn
}
