output "id" {
  description = "The server's name in CloudWatch."
  value       = aws_db_instance.this.identifier
}

output "host" {
  description = "Its host, as its certificate names it."
  value       = aws_db_instance.this.address
}

output "port" {
  description = "Its port."
  value       = aws_db_instance.this.port
}

output "security_group_id" {
  description = "Its security group."
  value       = aws_security_group.this.id
}

output "master_secret_arn" {
  description = "The administrator's secret: username and password."
  value       = aws_db_instance.this.master_user_secret[0].secret_arn
}
