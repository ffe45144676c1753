"""A model at work: its files, scores and reasons. Pure: bytes and arrays in, arrays out."""
