"""The gate: reads, checks and re-packs what callers send, torch-free, in a child process with a deadline.

In: binary files. Out: a summary of what they hold and a canonical copy, or an `InvalidArtifactError`.
May import: `spec`, `errors`. Only `archive/__main__.py`, the child process, touches the disk.
"""
