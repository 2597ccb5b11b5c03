"""Who calls."""

from __future__ import annotations

import grpc

ANONYMOUS = "anonymous"


def principal_of(context: grpc.ServicerContext) -> str:  # noqa: ARG001 - where authentication will read from
    """Returns the owner of what this call makes and may see; everybody is one caller until there is authentication."""
    return ANONYMOUS
