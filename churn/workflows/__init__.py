"""What the system does, one verb a module. Workflows take the services that they use and know no Dagster."""
