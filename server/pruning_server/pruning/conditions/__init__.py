"""Deciding by a condition: its evaluation over whole layers at once, and the plans that follow from it."""
