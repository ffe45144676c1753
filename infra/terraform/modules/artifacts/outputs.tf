output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.id
}

output "bucket_arn" {
  description = "Its ARN."
  value       = aws_s3_bucket.this.arn
}

output "uploader_policies" {
  description = "ARN of each partner's policy."
  value       = { for name, policy in aws_iam_policy.uploader : name => policy.arn }
}

# Named once its policy stands: a load balancer tries to write when it is told of it.
output "log_bucket" {
  description = "Name of the bucket of access logs."
  value       = aws_s3_bucket.logs.id
  depends_on  = [aws_s3_bucket_policy.logs]
}
