"""Removing channels from a module: what its code must say then, its smaller tensors, what it costs."""
