"""Which channels of which tensors can only be removed together, found by running the graph with labels on every axis."""
