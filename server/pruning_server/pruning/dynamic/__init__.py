"""Pruning while a model is trained: what is switched off now, by exact count, and how it moves. Pure but for the zeros."""
