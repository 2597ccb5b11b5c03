"""From a URI to an artifact."""

from __future__ import annotations

import ssl
from contextlib import AbstractContextManager, suppress
from urllib.parse import SplitResult, unquote

from pruning_server.adapters.uris.policy import NOT_ALLOWED, UriPolicy, parse
from pruning_server.adapters.uris.sources import Remote, open_file, open_http
from pruning_server.errors import ChecksumError, InvalidRequestError, PreconditionError, Reason, UnavailableError
from pruning_server.jobs.ports import Artifact, ArtifactStore, CancelToken, Metrics, UploadWriter
from pruning_server.spec.artifacts import ArtifactKind

CHUNK_BYTES = 2**20
MAX_NAME_CHARACTERS = 200


class UriFetcher:
    """Fills `jobs.fetching.Fetcher`; safe to use from any thread.

    Args:
        artifacts: where files go; it bounds their size.
        metrics: where transfers are counted.
        policy: what may be fetched.
        deadline_seconds: of one fetch.
        context: whom TLS trusts; None: the system's authorities.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        metrics: Metrics,
        policy: UriPolicy,
        *,
        deadline_seconds: float,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._metrics = metrics
        self._policy = policy
        self._deadline_seconds = deadline_seconds
        self._context = context or ssl.create_default_context()

    def refusal(self, uri: str) -> str | None:
        """Returns why this URI is refused whatever lies there, or None."""
        return self._policy.refusal(uri)

    def fetch(self, owner: str, kind: ArtifactKind, uri: str, sha256: str, cancelled: CancelToken) -> Artifact:
        """Returns the ACTIVE artifact of the file; see `jobs.fetching.Fetcher`."""
        parts = parse(uri)
        prefix = self._policy.prefix_of(parts)
        if prefix is None:
            raise InvalidRequestError(Reason.URI_DENIED, NOT_ALLOWED)
        name = unquote(parts.path).rsplit("/", 1)[-1]
        name = "".join(character if character.isprintable() else "?" for character in name)[-MAX_NAME_CHARACTERS:]
        with self._open(parts, prefix, cancelled) as remote:
            artifact = self._artifacts.create(owner, kind, sha256, remote.size_bytes, name)
            if artifact.active:
                return artifact
            return self._store(owner, artifact, remote, cancelled)

    def _open(self, parts: SplitResult, prefix: SplitResult, cancelled: CancelToken) -> AbstractContextManager[Remote]:
        if parts.scheme == "file":
            return open_file(parts, prefix)
        return open_http(parts, self._policy, self._context, self._deadline_seconds, cancelled)

    def _store(self, owner: str, artifact: Artifact, remote: Remote, cancelled: CancelToken) -> Artifact:
        try:
            with (
                self._metrics.transfer("upload", "uri") as moved,
                self._artifacts.open_upload(owner, artifact.artifact_id) as writer,
            ):
                position = 0
                while position < remote.size_bytes:
                    data = remote.content.read(min(CHUNK_BYTES, remote.size_bytes - position))
                    if not data or cancelled.is_set():
                        raise UnavailableError(
                            Reason.URI_UNREADABLE,
                            f"the file ended or was cut off after {position} of {remote.size_bytes} bytes",
                        )
                    _append(writer, position, data, artifact.committed_size_bytes)
                    position += len(data)
                    moved(len(data))
                return writer.finish()
        except ChecksumError as error:
            # It would count against the owner's share, and no better bytes are going to come.
            with suppress(PreconditionError):
                self._artifacts.delete(owner, artifact.artifact_id)
            raise InvalidRequestError(Reason.CONTENT_MISMATCH, "the file there has another SHA-256") from error


def _append(writer: UploadWriter, position: int, data: bytes, stored_bytes: int) -> None:
    """Passes on what is not stored yet: an earlier fetch may have been cut off."""
    skipped = min(max(stored_bytes - position, 0), len(data))
    if skipped < len(data):
        writer.write(position + skipped, memoryview(data)[skipped:])
