"""MLflow: registered models, versions, aliases, runs, and the names of the tags on them."""
