"""Client of the pruning service."""
