"""Files: the S3 bucket and its local copy, variants' files, and the activity history."""
