"""Files that are fetched by URI: from real servers and folders, and never from where the operator did not allow it."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from helpers.certificates import self_signed
from helpers.job_world import RecordingMetrics
from helpers.stores import OWNER, STRANGER, ManualClock, OpenStores, open_sqlite, random_bytes, read
from pruning_server.adapters.uris import UriFetcher, UriPolicy
from pruning_server.errors import InvalidRequestError, Reason, ServiceError, UnavailableError
from pruning_server.jobs.fetching import NEVER_CANCELLED
from pruning_server.spec.artifacts import ArtifactKind

CONTENT = random_bytes(7, 3 * 2**20 + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LOOPBACK = ("127.0.0.0/8", "::1/128")
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Site:
    """An HTTP server of one answer, on this machine."""

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append((self.path, dict(self.headers)))
                answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def whole(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, CONTENT)


def send(handler: http.server.BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content_Length": str(len(body))} | headers).items():
        if value:
            handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[OpenStores]:
    opened = open_sqlite(tmp_path / "stores", ManualClock())
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stores").mkdir()
    return tmp_path


def fetcher(
    stores: OpenStores,
    *prefixes: str,
    networks: tuple[str, ...] = LOOPBACK,
    seconds: float = 10.0,
    context: ssl.SSLContext | None = None,
) -> UriFetcher:
    policy = UriPolicy(prefixes, networks)
    return UriFetcher(stores.artifacts, RecordingMetrics(), policy, deadline_seconds=seconds, context=context)


def fetch(found: UriFetcher, uri: str, sha256: str = SHA256, owner: str = OWNER) -> str:
    return found.fetch(owner, ArtifactKind.TORCHSCRIPT, uri, sha256, NEVER_CANCELLED).artifact_id


@contextmanager
def refused(reason: Reason, kind: type[ServiceError] = InvalidRequestError, words: str = "") -> Iterator[None]:
    with pytest.raises(kind, match=words or None) as caught:
        yield
    assert caught.value.reason is reason, caught.value.message
    assert "secret" not in caught.value.message


def test_a_file_comes_over_http_once_per_owner(stores: OpenStores) -> None:
    with Site(whole) as site:
        found = fetcher(stores, f"http://127.0.0.1:{site.port}/models/")
        uri = f"http://127.0.0.1:{site.port}/models/a/net.pt?signature=secret"
        artifact_id = fetch(found, uri)
        assert read(stores.artifacts, artifact_id) == CONTENT
        assert stores.artifacts.get(OWNER, artifact_id).display_name == "net.pt"
        assert fetch(found, uri) == artifact_id
        other = fetch(found, uri, owner=STRANGER)
        assert other != artifact_id, "a hash that is known to one owner says nothing to another"
        path, headers = site.requests[0]
        assert path == "/models/a/net.pt?signature=secret"
        assert headers["Host"] == f"127.0.0.1:{site.port}"
        assert not {name.lower() for name in headers} & {"authorization", "cookie", "referer"}


def test_a_file_comes_over_tls_and_only_from_whom_it_trusts(stores: OpenStores, tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "site")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    trusting = ssl.create_default_context(cafile=str(pair.certificate))
    with Site(whole, context) as site:
        prefix = f"https://localhost:{site.port}/"
        assert read(stores.artifacts, fetch(fetcher(stores, prefix, context=trusting), prefix + "net.pt")) == CONTENT
        with refused(Reason.URI_UNREADABLE, words="cannot be trusted"):
            fetch(fetcher(stores, prefix), prefix + "net.pt", owner=STRANGER)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not UriPolicy(("https://a.example/",)).allows_address(address)


def test_public_addresses_and_those_of_the_operators_networks() -> None:
    policy = UriPolicy(("https://a.example/",), ("10.1.0.0/16", "fd00::/8"))
    for address in ("93.184.215.14", "2606:2800:21f:cb07::1", "10.1.2.3", "fd12::1", "::ffff:10.1.2.3"):
        assert policy.allows_address(address)
    assert not policy.allows_address("10.2.0.1")


def test_a_host_that_resolves_to_this_machine_is_not_connected_to(stores: OpenStores) -> None:
    with Site(whole) as site:
        for host in ("127.0.0.1", "localhost"):
            prefix = f"http://{host}:{site.port}/"
            with refused(Reason.URI_DENIED, words="does not allow"):
                fetch(fetcher(stores, prefix, networks=()), prefix + "net.pt")
        assert site.requests == []


def test_one_bad_address_of_a_host_is_enough(stores: OpenStores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a host could have a good address for the check and a bad one for the connection."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with refused(Reason.URI_DENIED):
        fetch(fetcher(stores, "http://a.example/", networks=()), "http://a.example/net.pt")


def test_the_address_that_was_checked_is_the_one_that_is_used(
    stores: OpenStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that points elsewhere a moment later changes nothing: it is asked for once."""
    real, asked = socket.getaddrinfo, []

    def resolve(host: str, *arguments: object, **options: object) -> object:
        asked.append(host)
        return real("127.0.0.1" if asked.count("a.example") == 1 else "192.0.2.1", *arguments, **options)  # type: ignore[arg-type]

    with Site(whole) as site:
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *a, **o: resolve(host, *a, **o) if host == "a.example" else real(host, *a, **o),
        )
        prefix = f"http://a.example:{site.port}/"
        assert read(stores.artifacts, fetch(fetcher(stores, prefix), prefix + "net.pt")) == CONTENT
        assert site.requests[0][1]["Host"] == f"a.example:{site.port}"
    assert asked == ["a.example"]


@pytest.mark.parametrize(
    "uri",
    [
        "http://a.example/models/net.pt",
        "https://a.example/other/net.pt",
        "https://a.example/models",
        "https://a.example/modelsx/net.pt",
        "https://a.example:8443/models/net.pt",
        "https://a.example.evil.example/models/net.pt",
        "https://evil.example/https://a.example/models/net.pt",
        "https://a.example@evil.example/models/net.pt",
        "https://me:secret@a.example/models/net.pt",
        "https://a.example/models/../net.pt",
        "https://a.example/models/%2e%2e/net.pt",
        "https://a.example/models/..%2fnet.pt",
        "https://a.example/models/%5c..%5cnet.pt",
        "https://a.example/models\\..\\net.pt",
        "https://a.example/models/net.pt#x",
        "https://a.example/models/net\t.pt",
        "https://a.example/models/n e t.pt",
        "https://a.example/models/nét.pt",
        "https://a.example:port/models/net.pt",
        "https://[::1/models/net.pt",
        "ftp://a.example/models/net.pt",
        "file:///models/net.pt",
        "/models/net.pt",
        "s3://a.example/models/net.pt",
        "gopher://a.example/models/",
        "",
    ],
)
def test_uris_outside_the_allowed_prefix(uri: str) -> None:
    assert UriPolicy(("https://a.example/models/",)).refusal(uri)


def test_uris_inside_it() -> None:
    policy = UriPolicy(("https://a.example/models/",))
    for uri in (
        "https://A.example/models/net.pt",
        "https://a.example:443/models/a/b.pt?x=../y",
        "HTTPS://a.example/models/x",
    ):
        assert policy.refusal(uri) is None
    assert UriPolicy(()).refusal("https://a.example/models/net.pt")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda h: send(h, b"", 302, Location="http://127.0.0.1/secret"), InvalidRequestError, "redirects"),
        (lambda h: send(h, b"no", 404), InvalidRequestError, "404"),
        (lambda h: send(h, b"no", 206), InvalidRequestError, "206"),
        (lambda h: send(h, b"no", 503), UnavailableError, "503"),
        (lambda h: send(h, CONTENT, Content_Length=""), InvalidRequestError, "length"),
        (lambda h: send(h, CONTENT, Content_Encoding="gzip"), InvalidRequestError, "encoded"),
        (lambda h: send(h, CONTENT[:1000], Content_Length=str(len(CONTENT))), UnavailableError, "cut off|failed"),
        (lambda h: h.wfile.write(b"garbage\r\n\r\n"), UnavailableError, "failed"),
        (lambda h: h.connection.close(), UnavailableError, "failed"),
    ],
)
def test_answers_that_are_not_the_file(
    stores: OpenStores, answer: Answer, kind: type[ServiceError], words: str
) -> None:
    with Site(answer) as site:
        prefix = f"http://127.0.0.1:{site.port}/"
        with refused(Reason.URI_UNREADABLE, kind, words):
            fetch(fetcher(stores, prefix), prefix + "net.pt?key=secret")
        assert len(site.requests) == 1


def test_another_hash_leaves_nothing(stores: OpenStores) -> None:
    with Site(whole) as site:
        prefix = f"http://127.0.0.1:{site.port}/"
        with refused(Reason.CONTENT_MISMATCH):
            fetch(fetcher(stores, prefix), prefix + "net.pt", sha256="0" * 64)
    assert stores.artifacts.list(OWNER, None, 10, "") == ((), "")


def test_a_file_above_the_size_limit_is_not_even_begun(stores: OpenStores) -> None:
    sent = []

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(2**40))
        handler.end_headers()
        while True:
            sent.append(handler.wfile.write(bytes(2**20)))

    with Site(endless) as site:
        prefix = f"http://127.0.0.1:{site.port}/"
        with refused(Reason.ARTIFACT_TOO_LARGE):
            fetch(fetcher(stores, prefix), prefix + "net.pt")
    assert sum(sent) < 2**26


def test_a_fetch_that_was_cut_off_goes_on_where_it_was(stores: OpenStores) -> None:
    with Site(lambda h: send(h, CONTENT[: 2**21], Content_Length=str(len(CONTENT)))) as site:
        prefix = f"http://127.0.0.1:{site.port}/"
        with refused(Reason.URI_UNREADABLE, UnavailableError):
            fetch(fetcher(stores, prefix), prefix + "net.pt")
    (partial,), _ = stores.artifacts.list(OWNER, None, 10, "")
    assert 0 < partial.committed_size_bytes < len(CONTENT)
    with Site(whole) as site:
        prefix = f"http://127.0.0.1:{site.port}/"
        assert fetch(fetcher(stores, prefix), prefix + "net.pt") == partial.artifact_id
    assert read(stores.artifacts, partial.artifact_id) == CONTENT


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A byte now and then: each wait is short, and the whole would take for ever."""
    try:
        for _ in range(10_000):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:
        pass


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_a_host_that_drips_is_cut_off(stores: OpenStores, how: str) -> None:
    cancelled = threading.Event()
    if how == "cancel":
        threading.Timer(0.3, cancelled.set).start()
    with Site(drip) as site:
        prefix = f"http://127.0.0.1:{site.port}/"
        found = fetcher(stores, prefix, seconds=0.6 if how == "deadline" else 60.0)
        with refused(Reason.URI_UNREADABLE, UnavailableError):
            found.fetch(OWNER, ArtifactKind.TORCHSCRIPT, prefix + "net.pt", SHA256, cancelled)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> Path:
    models = tmp_path / "models"
    (models / "a").mkdir(parents=True)
    (models / "a" / "net.pt").write_bytes(CONTENT)
    (tmp_path / "private.pt").write_bytes(CONTENT)
    return models


def test_a_file_under_the_allowed_folder(stores: OpenStores, models: Path) -> None:
    found = fetcher(stores, f"file://{models}/")
    assert read(stores.artifacts, fetch(found, f"file://{models}/a/net.pt")) == CONTENT
    (models / "link.pt").symlink_to(models / "a" / "net.pt")
    assert fetch(found, f"file://{models}/link.pt")


def test_files_elsewhere(stores: OpenStores, models: Path) -> None:
    found = fetcher(stores, f"file://{models}/")
    (models / "out.pt").symlink_to(models.parent / "private.pt")
    (models / "folder").symlink_to(models.parent)
    os.mkfifo(models / "pipe")
    for name in ("out.pt", "folder/private.pt", "missing.pt", "a", "pipe", "a/net.pt/x"):
        with refused(Reason.URI_UNREADABLE, words="no plain file"):
            fetch(found, f"file://{models}/{name}")
    for uri in (
        f"file://{models}/../private.pt",
        f"file://{models.parent}/private.pt",
        f"file://localhost{models}/a/net.pt",
    ):
        assert found.refusal(uri)
