output "cluster_name" {
  description = "ECS cluster."
  value       = aws_ecs_cluster.this.name
}

output "service_names" {
  description = "Services of the cluster."
  value       = keys(local.services)
}

output "database_client_security_groups" {
  description = "Security groups that connect to PostgreSQL, by service."
  value       = { for name, group in aws_security_group.service : name => group.id }
}

output "load_balancer_dns_name" {
  description = "DNS name of the load balancer."
  value       = aws_lb.this.dns_name
}

output "load_balancer_suffix" {
  description = "Its name in CloudWatch."
  value       = aws_lb.this.arn_suffix
}

output "target_group_suffixes" {
  description = "Each UI's target group's name in CloudWatch."
  value       = { for name, group in aws_lb_target_group.ui : name => group.arn_suffix }
}

output "task_definitions" {
  description = "Tasks that are run by hand."
  value = {
    databases = aws_ecs_task_definition.databases.family
    setup     = aws_ecs_task_definition.setup.family
  }
}

output "task_network" {
  description = "Network of tasks that are run by hand, as run-task takes it."
  value = format(
    "awsvpcConfiguration={subnets=[%s],securityGroups=[%s],assignPublicIp=DISABLED}",
    join(",", var.subnet_ids),
    aws_security_group.service["code"].id,
  )
}
