"""Input-dependent gates: a part of the channels decides, and the rest is computed only for inputs that need it."""
