"""Inspections: what a caller may ask, the folder of one, and the answers that are remembered."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

from msgspec import structs

from pruning_server.errors import InvalidRequestError, Reason, UnavailableError
from pruning_server.jobs.admission import NamedRef, check_refs
from pruning_server.jobs.fetching import NoUris, UriResolver
from pruning_server.jobs.ports import ArtifactStore, CancelToken, Inspector
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.base import Value, to_json
from pruning_server.spec.inspection import Inspection, InspectionRequest, TensorSpec, find_inspection_problems
from pruning_server.spec.problems import refuse
from pruning_server.spec.request import DynamicAxes, ScalarArgument

# The folder of one inspection: filled by the server, answered by `python -m pruning_server.worker inspect FOLDER`.
TASK_FILE = "task.json"
MODEL_FILE = "in/model.pt"
SAMPLES_STEM = "in/samples"
ANSWER_FILE = "out/answer.json"

MAX_REMEMBERED = 32


class InspectionTask(Value, frozen=True, kw_only=True):
    """Everything that the process is told: `task.json`. Paths are relative to the folder."""

    model: str
    samples: str | None
    inputs: tuple[TensorSpec, ...]
    arguments: tuple[ScalarArgument, ...]
    threads: int
    dynamic_axes: tuple[DynamicAxes, ...] = ()


class InspectionRefusal(Value, frozen=True, kw_only=True):
    """Why there is no inspection; `field` of the request is to be changed, "" where none would help."""

    field: str
    reason: Reason
    message: str
    metadata: dict[str, str]


class InspectionAnswer(Value, frozen=True, kw_only=True):
    """What the process leaves: exactly one of the two is set."""

    inspection: Inspection | None = None
    refusal: InspectionRefusal | None = None


class InspectionService:
    """Inspections of callers; every method may be called from any thread."""

    def __init__(self, artifacts: ArtifactStore, inspector: Inspector, uris: UriResolver | None = None) -> None:
        self._artifacts = artifacts
        self._uris = uris or UriResolver(NoUris(), 1)
        self._inspector = inspector
        self._lock = threading.Lock()
        self._remembered: OrderedDict[bytes, Inspection] = OrderedDict()

    def inspect(self, owner: str, request: InspectionRequest, cancelled: CancelToken) -> Inspection:
        """Returns what could be pruned; the same content with the same inputs is looked at once.

        Raises:
            as `Inspector.inspect`, and InvalidRequestError where the request or an artifact of it is not usable.
        """
        refuse(find_inspection_problems(request))
        refs = [NamedRef("model", ArtifactKind.TORCHSCRIPT, request.model)]
        if request.samples is not None:
            refs.append(NamedRef("samples", ArtifactKind.DATASET, request.samples))
        fetched = self._uris.resolve_refs(owner, tuple(refs), cancelled)
        if fetched:
            refs = [replace(named, ref=fetched.get(named.field, named.ref)) for named in refs]
            request = structs.replace(
                request, model=fetched.get("model", request.model), samples=fetched.get("samples", request.samples)
            )
        check_refs(owner, refs, self._artifacts)
        key = self._key(owner, request)
        with self._lock:
            known = self._remembered.get(key)
            if known is not None:
                self._remembered.move_to_end(key)
                return known
        found = self._inspector.inspect(owner, request, cancelled)
        with self._lock:
            self._remembered[key] = found
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def _key(self, owner: str, request: InspectionRequest) -> bytes:
        """Who asks, content and inputs. An answer that came sooner would tell one owner that another has the same file."""
        refs = [ref for ref in (request.model, request.samples) if ref is not None]
        contents = [self._artifacts.get(owner, ref.artifact_id).sha256 for ref in refs]
        return to_json([owner, contents, request.inputs, request.arguments, request.dynamic_axes])


def refusal_error(refusal: InspectionRefusal) -> InvalidRequestError:
    """The refusal of the process as the error of the call."""
    if not refusal.field:
        return InvalidRequestError(refusal.reason, refusal.message, metadata=refusal.metadata)
    error = InvalidRequestError.for_field(refusal.field, refusal.message, refusal.reason)
    error.metadata.update(refusal.metadata)
    return error


def cancelled_error() -> UnavailableError:
    """What an inspection ends with when nobody waits for it any more."""
    return UnavailableError(Reason.CANCELLED, "the inspection was stopped: its call ended, or the server stops")
