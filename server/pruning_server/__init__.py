"""Prunes TorchScript models over gRPC."""
