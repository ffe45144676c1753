"""Inference: model files, scores and reasons. Pure: bytes and arrays in, arrays out."""
