"""Rows: the contract of activity, file formats, features, labels, training snapshots. Pure: no services."""
