"""From the URIs of a request to artifacts: files that the server fetches itself, where its operator allows that."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from msgspec import structs

from pruning_server.errors import CapacityError, FieldViolation, InvalidRequestError, Reason
from pruning_server.jobs.admission import NamedRef, named_refs
from pruning_server.jobs.ports import Artifact, CancelToken
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.problems import Problem, missing, refuse
from pruning_server.spec.request import ArtifactRef, PruningSpec

RETRY_SECONDS = 10.0


class Fetcher(Protocol):
    """Brings a file that a URI names into the artifact store."""

    def refusal(self, uri: str) -> str | None:
        """Returns why this URI is refused whatever lies there, or None; does not look there."""
        ...

    def fetch(self, owner: str, kind: ArtifactKind, uri: str, sha256: str, cancelled: CancelToken) -> Artifact:
        """Returns the ACTIVE artifact of the file; its content is fetched only where this owner does not have it yet.

        Raises:
            InvalidRequestError: the address is not allowed, or what lies there cannot be read or has another hash.
            UnavailableError: the other side, or this one, failed in a way that may pass.
            CapacityError: the disk, or the owner's share of it, is full.
        """
        ...


class NoUris:
    """A `Fetcher` that refuses all: the default."""

    def refusal(self, uri: str) -> str | None:  # noqa: ARG002 - the port's signature
        """Returns what to do instead."""
        return "this server reads no URIs; upload the file and give its artifact_id"

    def fetch(self, owner: str, kind: ArtifactKind, uri: str, sha256: str, cancelled: CancelToken) -> Artifact:
        """Never called: every URI is refused before."""
        raise NotImplementedError((owner, kind, uri, sha256, cancelled))


@dataclass(frozen=True)
class _NeverCancelled:
    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float | None = None) -> bool:
        raise NotImplementedError(timeout)


NEVER_CANCELLED: CancelToken = _NeverCancelled()


class UriResolver:
    """Turns references to URIs into references to artifacts, a few at a time.

    Args:
        fetcher: what fetches.
        concurrency: fetches at a time, so that slow hosts never hold every place for submissions.
    """

    def __init__(self, fetcher: Fetcher, concurrency: int) -> None:
        self._fetcher = fetcher
        self._places = threading.BoundedSemaphore(concurrency)

    def resolve(self, owner: str, spec: PruningSpec, cancelled: CancelToken = NEVER_CANCELLED) -> PruningSpec:
        """Returns the request with artifacts only.

        Raises:
            InvalidRequestError: a URI is refused or comes without its hash (all of them are named), or as `Fetcher.fetch`
                (the field is named).
            CapacityError: too many fetches go on.
        """
        return replace_refs(spec, self.resolve_refs(owner, named_refs(spec), cancelled))

    def resolve_refs(
        self, owner: str, refs: tuple[NamedRef, ...], cancelled: CancelToken = NEVER_CANCELLED
    ) -> dict[str, ArtifactRef]:
        """The same for any references: returns those that were URIs, by field."""
        wanted = [named for named in refs if named.ref.uri is not None]
        refuse(problem for named in wanted if (problem := self._problem(named)) is not None)
        return {named.field: self._fetch(owner, named, cancelled) for named in wanted}

    def _problem(self, named: NamedRef) -> Problem | None:
        why = self._fetcher.refusal(named.ref.uri or "")
        if why is not None:
            return Problem(named.field, why, Reason.URI_DENIED)
        if named.ref.sha256 is None:
            return missing(f"{named.field}.sha256", "is needed with a URI: the SHA-256 of the file that you mean")
        return None

    def _fetch(self, owner: str, named: NamedRef, cancelled: CancelToken) -> ArtifactRef:
        if not self._places.acquire(blocking=False):
            raise CapacityError(
                Reason.TOO_MANY_CALLS,
                "the server fetches as many files as it can at a time; try again, or upload the file",
                retry_after_seconds=RETRY_SECONDS,
            )
        ref = named.ref
        sha256 = (ref.sha256 or "").lower()
        try:
            artifact = self._fetcher.fetch(owner, named.kind, ref.uri or "", sha256, cancelled)
        except InvalidRequestError as error:
            violation = FieldViolation(named.field, error.message)
            text = f"{named.field}: {error.message}"
            raise InvalidRequestError(error.reason, text, violations=(violation,)) from error
        finally:
            self._places.release()
        return ArtifactRef(artifact_id=artifact.artifact_id, sha256=sha256)


def repeat_uris(spec: PruningSpec, earlier: PruningSpec) -> PruningSpec:
    """A repeated request, with the artifacts that were fetched when it came first: the hash says that they are the same."""
    before = {named.field: named.ref for named in named_refs(earlier)}
    same = {
        named.field: before[named.field]
        for named in named_refs(spec)
        if named.ref.uri is not None
        and named.field in before
        and named.ref.sha256 is not None
        and named.ref.sha256.lower() == before[named.field].sha256
    }
    return replace_refs(spec, same)


def replace_refs(spec: PruningSpec, found: Mapping[str, ArtifactRef]) -> PruningSpec:
    """Returns the request with other references in these fields."""
    if not found:
        return spec
    return structs.replace(
        spec,
        model=found.get("spec.model", spec.model),
        validation=found.get("spec.validation", spec.validation),
        train=found.get("spec.train", spec.train),
        loss_module=found.get("spec.loss_module", spec.loss_module),
        method_samples=tuple(
            structs.replace(item, samples=found.get(f"spec.method_samples[{index}].samples", item.samples))
            for index, item in enumerate(spec.method_samples)
        ),
    )
