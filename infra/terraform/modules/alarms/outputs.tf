output "topic_arn" {
  description = "Topic to which further receivers may subscribe."
  value       = aws_sns_topic.this.arn
}
