"""How accurate pruned models are, beside Torch-Pruning, which has their source."""
