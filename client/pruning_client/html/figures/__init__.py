"""Plots as vector graphics that stand inside the page and take its colours."""
