"""The bundled data and model, where a wheel has them, and the hashes by which they are known to be simulated."""
