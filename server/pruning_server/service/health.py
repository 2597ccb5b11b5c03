"""The health service: what load balancers, containers and scripts ask before they send anything."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class Health:
    """Whether the server serves: as a whole (the empty name) and by service; NOT_SERVING until `serving` is called."""

    def __init__(self, server: grpc.Server, services: Sequence[str]) -> None:
        self._servicer = health.HealthServicer()
        self._services = ("", *services)
        self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def serving(self) -> None:
        """Says that calls are welcome."""
        self._set(health_pb2.HealthCheckResponse.SERVING)

    def stopping(self) -> None:
        """Says that no new calls should come, for good."""
        self._servicer.enter_graceful_shutdown()

    def _set(self, status: int) -> None:
        for service in self._services:
            self._servicer.set(service, status)
