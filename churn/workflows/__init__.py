"""The workflows, one module each, such as scoring and training. They take the services that they use; no Dagster."""
