"""Pure: what to cut. Criteria score, strategies plan, masks hold.

May import: `graph`, `spec`, `errors`.
"""
