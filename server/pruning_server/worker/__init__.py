"""The process that runs one job: `python -m pruning_server.worker`. `pipeline.py` is the whole story on one page.

May import: `jobs` (messages and workspace), `archive`, `graph`, `pruning`, `recovery`, `evaluation`, `spec`, `errors`.
"""
