output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "Subnets of tasks and the load balancer, one per zone."
  value       = [for zone in var.zones : aws_subnet.private[zone].id]
}

output "database_subnet_ids" {
  description = "Subnets without a way out, one per zone."
  value       = [for zone in var.zones : aws_subnet.database[zone].id]
}
