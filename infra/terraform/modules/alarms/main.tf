# What CloudWatch can see: servers and services. Scores, models and data are the incidents' (docs/adr/0015).

locals {
  gib = 1024 * 1024 * 1024
  database = {
    storage = {
      metric    = "FreeStorageSpace"
      statistic = "Minimum"
      operator  = "LessThanThreshold"
      threshold = max(5, floor(var.database_storage_gib * 0.15)) * local.gib
      meaning   = "Storage is nearly full, and grows by itself no further or not fast enough: raise database_max_storage_gib, or keep fewer weeks."
    }
    cpu = {
      metric    = "CPUUtilization"
      statistic = "Average"
      operator  = "GreaterThanThreshold"
      threshold = 85
      meaning   = "The processors were busy for half an hour: look at Performance Insights; take a larger class."
    }
    memory = {
      metric    = "FreeableMemory"
      statistic = "Minimum"
      operator  = "LessThanThreshold"
      threshold = 256 * 1024 * 1024
      meaning   = "Memory is nearly full: take a larger class."
    }
  }
}

resource "aws_sns_topic" "this" {
  name              = "${var.name}-alarms"
  kms_master_key_id = var.kms_key_arn
}

resource "aws_sns_topic_subscription" "email" {
  for_each = var.emails

  topic_arn = aws_sns_topic.this.arn
  protocol  = "email"
  endpoint  = each.key
}

resource "aws_cloudwatch_metric_alarm" "database" {
  for_each = local.database

  alarm_name          = "${var.name}-database-${each.key}"
  alarm_description   = each.value.meaning
  namespace           = "AWS/RDS"
  metric_name         = each.value.metric
  dimensions          = { DBInstanceIdentifier = var.database_id }
  statistic           = each.value.statistic
  comparison_operator = each.value.operator
  threshold           = each.value.threshold
  period              = 300
  evaluation_periods  = 6
  treat_missing_data  = "breaching" # a server that says nothing is down
  alarm_actions       = [aws_sns_topic.this.arn]
  ok_actions          = [aws_sns_topic.this.arn]
}

resource "aws_cloudwatch_metric_alarm" "service" {
  for_each = toset(var.service_names)

  alarm_name          = "${var.name}-${each.key}-down"
  alarm_description   = "No task of ${each.key} has run for ten minutes: see its events in ECS and its log group."
  namespace           = "ECS/ContainerInsights"
  metric_name         = "RunningTaskCount"
  dimensions          = { ClusterName = var.cluster_name, ServiceName = each.key }
  statistic           = "Minimum"
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  period              = 60
  evaluation_periods  = 10
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.this.arn]
  ok_actions          = [aws_sns_topic.this.arn]
}

resource "aws_cloudwatch_metric_alarm" "load_balancer" {
  alarm_name          = "${var.name}-load-balancer-errors"
  alarm_description   = "The load balancer itself answered 5xx more than ten times in five minutes: a UI is down or too slow."
  namespace           = "AWS/ApplicationELB"
  metric_name         = "HTTPCode_ELB_5XX_Count"
  dimensions          = { LoadBalancer = var.load_balancer_suffix }
  statistic           = "Sum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 10
  period              = 300
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching" # no error, no count
  alarm_actions       = [aws_sns_topic.this.arn]
  ok_actions          = [aws_sns_topic.this.arn]
}

resource "aws_cloudwatch_metric_alarm" "target" {
  for_each = var.target_group_suffixes

  alarm_name          = "${var.name}-${each.key}-errors"
  alarm_description   = "${each.key} answered 5xx more than ten times in five minutes: see its log group."
  namespace           = "AWS/ApplicationELB"
  metric_name         = "HTTPCode_Target_5XX_Count"
  dimensions          = { LoadBalancer = var.load_balancer_suffix, TargetGroup = each.value }
  statistic           = "Sum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 10
  period              = 300
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.this.arn]
  ok_actions          = [aws_sns_topic.this.arn]
}
