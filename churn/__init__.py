"""Weekly churn scores for many model variants. The core: plain Python over frames and files."""
