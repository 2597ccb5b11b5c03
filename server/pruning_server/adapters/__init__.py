"""I/O: the SQLite job store, the artifact store, the gate process, the executor, the Prometheus registry, the clock.

May import: `jobs` (its ports), `archive`, `spec`, `errors`. Never torch, never grpc.
"""
