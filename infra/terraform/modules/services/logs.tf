resource "aws_cloudwatch_log_group" "task" {
  for_each = toset(concat(keys(local.services), ["databases", "setup"]))

  name              = "/${var.name}/${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

# ECS would make it itself, and not encrypt it.
resource "aws_cloudwatch_log_group" "insights" {
  name              = "/aws/ecs/containerinsights/${var.name}/performance"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}
