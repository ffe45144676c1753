"""From scores to decisions: what a campaign changed, and what it can show. Pure."""
