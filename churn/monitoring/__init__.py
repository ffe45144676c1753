"""What may be wrong with a fleet: profiles, drift, conditions, incidents, and reasons to retrain. Pure."""
