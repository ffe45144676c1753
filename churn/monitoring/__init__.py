"""Monitoring of a fleet: profiles, drift, conditions, incidents, and reasons to retrain. Pure."""
