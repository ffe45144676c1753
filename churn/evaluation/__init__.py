"""What scores are worth: metrics, segments, sequential tests, comparison of two models, and their charts. Pure."""
