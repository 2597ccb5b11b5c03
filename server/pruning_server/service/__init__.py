"""The only room that knows grpc: servicers, converters, the status table, interceptors, health.

May import: `jobs`, `spec`, `errors`, `pruning_api`.
"""
