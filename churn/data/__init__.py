"""Input rows: where they come from, what they must hold, and the features made of them."""
