"""Rows: the contract of activity, file formats, features, labels and training snapshots. Pure."""
