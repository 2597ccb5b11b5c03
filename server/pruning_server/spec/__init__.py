"""Torch-free values that every room speaks: the request, the dataset's and the model's summaries, the report.

May import: `errors`. Everything here is a frozen `msgspec.Struct` that round-trips through JSON.
"""
