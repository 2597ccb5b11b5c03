"""The client that the connection flags ask for."""

from __future__ import annotations

from argparse import Namespace

from pruning_client.client import PruningClient


def connect(options: Namespace) -> PruningClient:
    """Returns a client for `--server`, `--tls-ca`, `--tls-cert`, `--tls-key` and `--token-file`.

    Raises:
        BadInputError: one of them makes no sense.
    """
    return PruningClient(
        options.server,
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        token_file=options.token_file,
    )
