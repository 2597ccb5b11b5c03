"""The client that the connection flags ask for."""

from __future__ import annotations

from argparse import Namespace

from pruning_client.client import PruningClient


def connect(options: Namespace) -> PruningClient:
    """Returns a client for `--server`, `--tls-ca` and `--token-file`.

    Raises:
        BadInputError: one of them makes no sense.
    """
    return PruningClient(options.server, tls_ca=options.tls_ca, token_file=options.token_file)
