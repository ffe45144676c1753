"""Simulated players, and the bundled data and model that are made from them."""
