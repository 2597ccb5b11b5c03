"""Certificates that are replaced while the server runs, and certificates that say who calls."""

from __future__ import annotations

import logging
import shutil
import ssl
from pathlib import Path

import grpc
import pytest

from helpers.certificates import Pair, self_signed
from helpers.grpc_world import GrpcWorld, Refusal
from helpers.stores import ManualClock
from pruning_api.v1 import artifact_pb2, artifact_service_pb2_grpc
from pruning_api.v1 import artifact_service_pb2 as api
from pruning_server.adapters.pem_files import watch_tls
from pruning_server.adapters.token_file import TokenFile, add_token
from pruning_server.errors import InvalidRequestError
from pruning_server.jobs.access import Role
from pruning_server.service.server import Access


def shown_certificate(address: str) -> bytes:
    """The certificate that the server shows to whoever connects now."""
    host, _, port = address.rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)))
    return ssl.PEM_cert_to_DER_cert(pem)


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


def replace(pair: Pair, by: Pair) -> None:
    shutil.copy(by.key, pair.key)
    shutil.copy(by.certificate, pair.certificate)


def test_a_new_certificate_is_shown_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    used, first, second = (self_signed(tmp_path, name) for name in ("used", "first", "second"))
    replace(used, first)
    source = watch_tls(used.certificate, used.key, None, clock)
    with GrpcWorld(tmp_path / "data", tls=source.current) as world:
        address = world.server.address
        with connected(address, first) as channel:
            listed(channel)
            assert shown_certificate(address) == der(first)
            shutil.copy(second.certificate, used.certificate)
            clock.advance(1.0)
            with caplog.at_level(logging.ERROR):
                assert shown_certificate(address) == der(first), "the key is still the old one"
            assert "cannot be used" in caplog.text
            assert "PRIVATE" not in caplog.text
            shutil.copy(second.key, used.key)
            clock.advance(1.0)
            assert shown_certificate(address) == der(second)
            listed(channel)  # a connection that stands is left alone
        with connected(address, second) as channel:
            listed(channel)


def test_new_authorities_of_clients_count_without_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    server, old, new = (self_signed(tmp_path, name) for name in ("server", "old", "new"))
    authority = tmp_path / "ca.pem"
    shutil.copy(old.certificate, authority)
    source = watch_tls(server.certificate, server.key, authority, clock)
    with GrpcWorld(tmp_path / "data", tls=source.current, access=Access(certificates=True)) as world:
        address = world.server.address
        with connected(address, server, old) as channel:
            listed(channel)
        with connected(address, server, new) as channel, pytest.raises(grpc.RpcError):
            listed(channel)
        shutil.copy(new.certificate, authority)
        clock.advance(1.0)
        with connected(address, server, new) as channel:
            listed(channel)
        with connected(address, server, old) as channel, pytest.raises(grpc.RpcError):
            listed(channel)


def test_a_certificate_says_who_calls_and_a_token_goes_before_it(tmp_path: Path) -> None:
    server, alice, bob = (self_signed(tmp_path, name) for name in ("server", "alice", "bob"))
    authority = tmp_path / "ca.pem"
    authority.write_text(alice.certificate.read_text() + bob.certificate.read_text())
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "alice", Role.READ)
    source = watch_tls(server.certificate, server.key, authority, ManualClock())
    access = Access(TokenFile(tokens, ManualClock()), certificates=True)
    with GrpcWorld(tmp_path / "data", tls=source.current, access=access) as world:
        address = world.server.address
        with connected(address, server, alice) as channel:
            created = created_in(channel)
            assert listed(channel) == {created}
            # The principal of a certificate is another one than that of a token, even where they have the same name.
            assert listed(channel, token) == set()
            with pytest.raises(grpc.RpcError) as caught:
                listed(channel, "prn_wrong")
            assert Refusal(caught.value).reason == "UNAUTHENTICATED", "a wrong token is no reason to fall back"
        with connected(address, server, bob) as channel:
            assert listed(channel) == set()


def test_files_that_do_not_fit_are_refused_at_the_start(tmp_path: Path) -> None:
    one, two = self_signed(tmp_path, "one"), self_signed(tmp_path, "two")
    for certificate, key, authority in (
        (one.certificate, two.key, None),
        (one.key, one.key, None),
        (one.certificate, one.key, one.key),
        (one.certificate, one.key, tmp_path / "missing"),
    ):
        with pytest.raises(InvalidRequestError, match="--tls-"):
            watch_tls(certificate, key, authority, ManualClock())


def connected(address: str, server: Pair, client: Pair | None = None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        server.certificate.read_bytes(),
        None if client is None else client.key.read_bytes(),
        None if client is None else client.certificate.read_bytes(),
    )
    # Channels with equal credentials share connections, and sessions, unless told otherwise.
    return grpc.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])


def listed(channel: grpc.Channel, token: str | None = None) -> set[str]:
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    answer = stub.ListArtifacts(api.ListArtifactsRequest(), timeout=20, metadata=metadata)
    return {artifact.artifact_id for artifact in answer.artifacts}


def created_in(channel: grpc.Channel) -> str:
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
    request = api.CreateArtifactRequest(kind=artifact_pb2.ARTIFACT_KIND_DATASET, size_bytes=1, sha256="ab" * 32)
    return stub.CreateArtifact(request, timeout=20).artifact.artifact_id
