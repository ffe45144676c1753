# Who may talk to whom: people to the load balancer, it to the UIs, Dagster to the code, all to PostgreSQL and, by 443,
# to AWS, the image's registry and whoever is alerted.

resource "aws_security_group" "load_balancer" {
  name        = "${var.name}-load-balancer"
  description = "The UIs of ${var.name}"
  vpc_id      = var.vpc_id
  tags        = { Name = "${var.name}-load-balancer" }
}

resource "aws_vpc_security_group_ingress_rule" "people" {
  for_each = var.client_cidr_blocks

  security_group_id = aws_security_group.load_balancer.id
  description       = "People"
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "to_ui" {
  for_each = local.uis

  security_group_id            = aws_security_group.load_balancer.id
  description                  = "To ${each.key}"
  referenced_security_group_id = aws_security_group.service[each.key].id
  ip_protocol                  = "tcp"
  from_port                    = local.services[each.key].port
  to_port                      = local.services[each.key].port
}

resource "aws_security_group" "service" {
  for_each = local.services

  name        = "${var.name}-${each.key}"
  description = "Tasks of ${each.key}"
  vpc_id      = var.vpc_id
  tags        = { Name = "${var.name}-${each.key}" }
}

resource "aws_vpc_security_group_ingress_rule" "from_load_balancer" {
  for_each = local.uis

  security_group_id            = aws_security_group.service[each.key].id
  description                  = "From the load balancer"
  referenced_security_group_id = aws_security_group.load_balancer.id
  ip_protocol                  = "tcp"
  from_port                    = local.services[each.key].port
  to_port                      = local.services[each.key].port
}

locals {
  calls = merge([for caller, service in local.services : {
    for callee in service.calls : "${caller}-${callee}" => { caller = caller, callee = callee }
  }]...)
}

resource "aws_vpc_security_group_ingress_rule" "call" {
  for_each = local.calls

  security_group_id            = aws_security_group.service[each.value.callee].id
  description                  = "From ${each.value.caller}"
  referenced_security_group_id = aws_security_group.service[each.value.caller].id
  ip_protocol                  = "tcp"
  from_port                    = local.services[each.value.callee].port
  to_port                      = local.services[each.value.callee].port
}

resource "aws_vpc_security_group_egress_rule" "call" {
  for_each = local.calls

  security_group_id            = aws_security_group.service[each.value.caller].id
  description                  = "To ${each.value.callee}"
  referenced_security_group_id = aws_security_group.service[each.value.callee].id
  ip_protocol                  = "tcp"
  from_port                    = local.services[each.value.callee].port
  to_port                      = local.services[each.value.callee].port
}

resource "aws_vpc_security_group_egress_rule" "database" {
  for_each = local.services

  security_group_id            = aws_security_group.service[each.key].id
  description                  = "To PostgreSQL"
  referenced_security_group_id = var.database_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = var.database_port
  to_port                      = var.database_port
}

resource "aws_vpc_security_group_egress_rule" "https" {
  for_each = local.services

  security_group_id = aws_security_group.service[each.key].id
  description       = "To AWS, the registry, and who is alerted"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_lb" "this" {
  # checkov:skip=CKV_AWS_150: deletion protection is a value of the environment; production has it
  # checkov:skip=CKV2_AWS_28: it is internal, and its clients are named
  name                       = var.name
  internal                   = true
  load_balancer_type         = "application"
  subnets                    = var.subnet_ids
  security_groups            = [aws_security_group.load_balancer.id]
  drop_invalid_header_fields = true
  enable_deletion_protection = var.protected
  idle_timeout               = 300 # Dagster's live updates

  access_logs {
    bucket  = var.log_bucket
    prefix  = "load-balancer"
    enabled = true
  }
}

resource "aws_lb_target_group" "ui" {
  # checkov:skip=CKV_AWS_378: TLS ends at the load balancer; only its security group reaches the tasks
  for_each = local.uis

  name                 = "${var.name}-${each.key}"
  vpc_id               = var.vpc_id
  target_type          = "ip"
  protocol             = "HTTP"
  port                 = local.services[each.key].port
  deregistration_delay = 30

  health_check {
    path                = each.value.health
    matcher             = "200"
    interval            = 30
    timeout             = 10
    healthy_threshold   = 2
    unhealthy_threshold = 4
  }
}

resource "aws_lb_listener" "this" {
  load_balancer_arn = aws_lb.this.arn
  port              = 443
  protocol          = "HTTPS"
  ssl_policy        = "ELBSecurityPolicy-TLS13-1-2-2021-06"
  certificate_arn   = var.certificate_arn

  default_action {
    type = "fixed-response"

    fixed_response {
      content_type = "text/plain"
      message_body = "There is nothing under this name."
      status_code  = "404"
    }
  }
}

resource "aws_lb_listener_rule" "ui" {
  for_each = local.uis

  listener_arn = aws_lb_listener.this.arn

  action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.ui[each.key].arn
  }

  condition {
    host_header {
      values = [each.value.host]
    }
  }
}
