"""Default values that settings and the core share, each written once. Pure, and light to import.

Belongs here: a default that an environment variable can replace and that the core uses without one. Not here: limits
that no deployment can set, which stand in the module that applies them.
"""

HORIZON_MONTHS = 3
"""Months without activity after which a player has churned; also how many newest months count as recent."""

LABEL_LAG_DAYS = 7
"""Days after the horizon until late reports of activity have arrived."""

MIN_AUC = 0.6
"""Minimum ROC AUC of a new model, and of champions registered without a limit of their own."""

MAX_CALIBRATION_ERROR = 0.05
"""Maximum calibration error of a new model."""

MIN_LABELS = 200
"""Matured labels of each outcome that training needs."""

TRAINING_TRIALS = 20
"""Hyperparameter trials per training run."""

RETRAIN_AFTER_MONTHS = 3
"""Age of a champion, in months, at which training is requested."""

MAX_QUARANTINE_SHARE = 0.05
"""Share of a file's rows that may break the contract."""
