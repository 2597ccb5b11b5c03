"""Pure: winning accuracy back. Takes model, data, device and seed as arguments; touches neither disk nor clock.

May import: `graph`, `spec`, `errors`.
"""
