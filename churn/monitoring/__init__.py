"""What is watched from week to week: a model's inputs, its scores, and what became of them. Pure."""
