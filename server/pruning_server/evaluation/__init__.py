"""Pure: how good, how sure, how dear. Metrics, paired statistics, cost, and the report that holds them.

May import: `graph`, `spec`, `errors`.
"""
