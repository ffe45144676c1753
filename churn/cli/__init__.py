"""The ``churn`` command. Each module is one command or what several share."""
