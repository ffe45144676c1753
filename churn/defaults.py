"""Defaults that an environment variable can replace and that the core uses without settings. Pure.

Limits that no deployment can set are in the module that applies them.
"""

HORIZON_MONTHS = 3  # without activity, after which a player has churned; before the as-of month, for who is at risk
LABEL_LAG_DAYS = 7  # after the horizon, until late reports of activity have arrived
DELIVERY_DELAY_DAYS = 3  # after a month, until its rows arrive, while later extracts do not show it
MIN_AUC = 0.6  # ROC AUC of a new model, and of champions registered without a limit of their own
MAX_CALIBRATION_ERROR = 0.05  # of a new model
MIN_LABELS = 200  # matured labels of each outcome that training needs
TRAINING_TRIALS = 20  # hyperparameter trials per training run
RETRAIN_AFTER_MONTHS = 3  # age of a champion at which training is requested
PARTITIONS_NAME = "churn_variants"  # of Dagster's dynamic partitions, which all code locations of an instance share
INPUT_CHECKS_PER_MINUTE = 300  # 430,000 listings a day cost some $2
KEEP_RUN_DAYS = 180
MAX_QUARANTINE_SHARE = 0.05  # of a file's rows that may break the contract
MAX_UNKNOWN_LEVEL_SHARE = 0.9  # of accounts whose level the model does not know, above its reference
