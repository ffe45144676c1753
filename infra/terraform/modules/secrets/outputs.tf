output "kms_key_arn" {
  description = "The deployment's key."
  value       = aws_kms_key.this.arn
}

output "logins" {
  description = "ARN and name of each login's secret."
  value = {
    for login, secret in aws_secretsmanager_secret.login : login => { arn = secret.arn, name = secret.name }
  }
}

output "alert_urls" {
  description = "ARN and name of the secret of CHURN_ALERT_URLS."
  value       = { arn = aws_secretsmanager_secret.alert_urls.arn, name = aws_secretsmanager_secret.alert_urls.name }
}
