# What CloudWatch can see: servers and services. Scores, models and data are the incidents' (docs/adr/0015).

locals {
  alarms  = jsondecode(file("${path.module}/alarms.json")) # written by infra/make_alert_rules.py
  storage = max(5, floor(var.database_storage_gib * 0.15)) * 1024 * 1024 * 1024
  actions = [aws_sns_topic.this.arn]
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
  for_each = local.alarms.database

  alarm_name          = "${var.name}-database-${each.key}"
  alarm_description   = each.value.description
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = { DBInstanceIdentifier = var.database_id }
  statistic           = each.value.statistic
  comparison_operator = each.value.comparison
  threshold           = coalesce(each.value.threshold, local.storage)
  period              = each.value.period
  evaluation_periods  = each.value.periods
  treat_missing_data  = each.value.missing
  alarm_actions       = local.actions
  ok_actions          = local.actions
}

resource "aws_cloudwatch_metric_alarm" "service" {
  for_each = toset(var.service_names)

  alarm_name          = "${var.name}-${each.key}-down"
  alarm_description   = replace(local.alarms.service.description, "{name}", each.key)
  namespace           = local.alarms.service.namespace
  metric_name         = local.alarms.service.metric
  dimensions          = { ClusterName = var.cluster_name, ServiceName = each.key }
  statistic           = local.alarms.service.statistic
  comparison_operator = local.alarms.service.comparison
  threshold           = local.alarms.service.threshold
  period              = local.alarms.service.period
  evaluation_periods  = local.alarms.service.periods
  treat_missing_data  = local.alarms.service.missing
  alarm_actions       = local.actions
  ok_actions          = local.actions
}

resource "aws_cloudwatch_metric_alarm" "load_balancer" {
  alarm_name          = "${var.name}-load-balancer-errors"
  alarm_description   = local.alarms.load_balancer.description
  namespace           = local.alarms.load_balancer.namespace
  metric_name         = local.alarms.load_balancer.metric
  dimensions          = { LoadBalancer = var.load_balancer_suffix }
  statistic           = local.alarms.load_balancer.statistic
  comparison_operator = local.alarms.load_balancer.comparison
  threshold           = local.alarms.load_balancer.threshold
  period              = local.alarms.load_balancer.period
  evaluation_periods  = local.alarms.load_balancer.periods
  treat_missing_data  = local.alarms.load_balancer.missing
  alarm_actions       = local.actions
  ok_actions          = local.actions
}

resource "aws_cloudwatch_metric_alarm" "target" {
  for_each = var.target_group_suffixes

  alarm_name          = "${var.name}-${each.key}-errors"
  alarm_description   = replace(local.alarms.target.description, "{name}", each.key)
  namespace           = local.alarms.target.namespace
  metric_name         = local.alarms.target.metric
  dimensions          = { LoadBalancer = var.load_balancer_suffix, TargetGroup = each.value }
  statistic           = local.alarms.target.statistic
  comparison_operator = local.alarms.target.comparison
  threshold           = local.alarms.target.threshold
  period              = local.alarms.target.period
  evaluation_periods  = local.alarms.target.periods
  treat_missing_data  = local.alarms.target.missing
  alarm_actions       = local.actions
  ok_actions          = local.actions
}
