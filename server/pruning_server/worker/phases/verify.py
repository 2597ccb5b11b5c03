"""VERIFY: the file that will be delivered is built, loaded again, and compared with what was trained."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.archive.model import repack_model
from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import StateGuard, exported_methods, get_tensor
from pruning_server.graph.proof.pair import Call
from pruning_server.graph.structure import Cut
from pruning_server.graph.training import thaw
from pruning_server.pruning.masks import count_violations
from pruning_server.pruning.values import Mask
from pruning_server.spec.report import VerifySection
from pruning_server.spec.report_strategy import GateSection
from pruning_server.worker.archives import ModelArchive
from pruning_server.worker.check import MAX_RELATIVE_ERROR
from pruning_server.worker.compacting import Compacted, compact
from pruning_server.worker.copies import HALF
from pruning_server.worker.expected import pack, relative_error
from pruning_server.worker.feeding import Feed
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.gate import Gate
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.phases.prune import Pruned
from pruning_server.worker.phases.recover import Trained
from pruning_server.worker.proof import prove
from pruning_server.worker.proof_gate import open_gate, prove_core
from pruning_server.worker.running import all_tensors
from pruning_server.worker.structures import sized_runs

# The trained copy's graph was rewritten for training, so its sums may be ordered differently.
MAX_TRAINED_ERROR = 1e-3
MAX_TRAINED_ERROR_HALF = 5e-2

Run = tuple[tuple[object, ...], object]
Gating = Callable[[Compacted], tuple[Compacted, Gate | GateSection]]


@dataclass(frozen=True)
class Final:
    """The result.

    Attributes:
        content: the bytes of the pruned archive.
        module: loaded from them, in evaluation mode, on the job's device.
        weights: the same with its constants thawed, for reading pruned weights by name.
        expected: the bytes of `out/expected.npz`.
        format_version: of the archive.
        proof: how the shrunk archive was proven equal to the masked model; None where only values changed.
        compacted: what it was packed from.
        gate: its inference gate, or why it has none; None where none was asked for.
    """

    content: bytes
    module: torch.jit.ScriptModule
    weights: torch.jit.ScriptModule
    expected: bytes
    format_version: int
    proof: VerifySection | None
    compacted: Compacted
    gate: Gate | GateSection | None = None


def verify(
    loaded: Loaded,
    observed: Observed,
    pruned: Pruned,
    trained: Trained,
    folder: RunFolder,
    gating: Gating | None = None,
) -> Final:
    """Builds the archive and proves that it is the trained model in the original's clothes.

    `gating` writes a gate into it first; what is proven then is the gated model with its gate open, and its core.

    Raises:
        JobFailureError: VERIFICATION_FAILED, saying what differs.
    """
    compacted, gate = compact(loaded, observed, pruned, trained, folder), None
    if gating is not None:
        compacted, gate = gating(compacted)
    core = gate.core if isinstance(gate, Gate) else ()
    content, version = _archive_bytes(compacted.module, pruned.archive.extra_files)
    module = _on_device(compacted.module, pruned.archive).eval()
    in_memory = _runs(module, observed, observed.feed)
    everything = _runs(open_gate(module), observed, observed.feed) if core else in_memory
    delivered = torch.jit.load(io.BytesIO(content), map_location=pruned.archive.device)
    _require_same_clothes(loaded.archive.load(), delivered, compacted.cut)
    weights = thaw(delivered)
    removed = {name: mask.removed for name, mask in compacted.masks.items()}
    _require_zeros(weights, compacted.masks)
    _require_equal(
        in_memory, _runs(delivered.eval(), observed, observed.feed), MAX_RELATIVE_ERROR, "the model in memory"
    )
    if compacted.whole is not None:
        whole = _runs(_on_device(compacted.whole, pruned.archive).eval(), observed, observed.feed)
        _require_equal(whole, everything, _trained_tolerance(delivered), "the model with its empty channels")
    if trained.feed is observed.feed:  # else it was trained in another precision, and rounded
        kept = _runs(trained.module.eval(), observed, trained.feed)
        _require_equal(kept, everything, _trained_tolerance(delivered), "the model that was trained")
    expected = pack(in_memory, removed, observed.rule.seed, compacted.cut, _method_calls(observed), core)
    proof = None
    if compacted.cut or core:
        proof, gate = _proof(loaded, observed, pruned, compacted, content, gate)
    return Final(content, delivered, weights, expected, version, proof, compacted, gate)


def _proof(
    loaded: Loaded,
    observed: Observed,
    pruned: Pruned,
    compacted: Compacted,
    content: bytes,
    gate: Gate | GateSection | None,
) -> tuple[VerifySection, Gate | GateSection | None]:
    """Of what will be delivered, against the caller's archive; and the gate with what was proven of it."""
    gated = isinstance(gate, Gate)

    def delivered() -> torch.jit.ScriptModule:
        module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(content), map_location=loaded.archive.device)
        return open_gate(module) if gated else module

    calls = [Call("forward", arguments) for arguments in _forward_arguments(observed, observed.feed)]
    if isinstance(gate, Gate):
        error = prove_core(delivered, gate.core, calls, seed=observed.rule.seed)
        gate = gate.proven(error)
    calls += [Call(method, arguments) for method, arguments in _method_calls(observed)]
    proof = prove(
        loaded.archive.load,
        delivered,
        compacted.cut,
        calls,
        seed=observed.rule.seed,
        # Where single weights were pruned first, no archive has been cut and nothing else.
        load_unrecovered=pruned.archive.load if pruned.cut else None,
        unrecovered_cut=pruned.cut,
    )
    return proof, gate


def _on_device(module: torch.jit.ScriptModule, archive: ModelArchive) -> torch.jit.ScriptModule:
    """The module on the job's device; `.to` would leave the constants of a frozen archive behind."""
    if archive.device == "cpu":
        return module
    saved = io.BytesIO(module.save_to_buffer())
    moved: torch.jit.ScriptModule = torch.jit.load(saved, map_location=archive.device)
    return moved


def _trained_tolerance(module: torch.jit.ScriptModule) -> float:
    half = any(tensor.dtype in HALF for tensor in module.state_dict().values())
    return MAX_TRAINED_ERROR_HALF if half else MAX_TRAINED_ERROR


def _archive_bytes(module: torch.jit.ScriptModule, extra_files: dict[str, bytes]) -> tuple[bytes, int]:
    saved = io.BytesIO(module.save_to_buffer(_extra_files=extra_files))
    packed = io.BytesIO()
    summary = repack_model(saved, packed, compress=True)
    return packed.getvalue(), summary.format_version


def _runs(module: torch.jit.ScriptModule, observed: Observed, feed: Feed) -> list[Run]:
    """Calls the model on a few samples at the batch sizes that it takes."""
    runs: list[Run] = []
    # Arguments of their own, as a model may write to its inputs.
    for arguments, untouched in zip(*(_forward_arguments(observed, feed) for _ in range(2)), strict=True):
        torch.manual_seed(observed.rule.seed)
        with torch.no_grad(), StateGuard(module):
            output = module(*arguments)
        runs.append((untouched, output))
    return runs


def _arguments(observed: Observed, feed: Feed) -> list[tuple[object, ...]]:
    """A few samples at the batch sizes that the model takes."""
    samples = len(feed.samples)
    return [feed.inputs([row % samples for row in range(size)]) for size in observed.batch_sizes]


def _forward_arguments(observed: Observed, feed: Feed) -> list[tuple[object, ...]]:
    """Likewise, and at the other lengths that forward takes."""
    return [*_arguments(observed, feed), *sized_runs(feed, observed.rule, observed.sizes)]


def _method_calls(observed: Observed) -> list[tuple[str, tuple[object, ...]]]:
    """Calls of the methods that the caller sent samples for."""
    feeds = observed.method_feeds.items()
    return [(method, arguments) for method, feed in feeds for arguments in _arguments(observed, feed)]


def _require_zeros(weights: torch.jit.ScriptModule, masks: Mapping[str, Mask]) -> None:
    violations = count_violations({name: get_tensor(weights, name) for name in masks}, masks)
    if violations:
        raise _failure(f"pruned weights that are not 0: {violations}")


def _require_equal(got: Sequence[Run], wanted: Sequence[Run], tolerance: float, what: str) -> None:
    error = max(relative_error(all_tensors(a), all_tensors(b)) for (_, a), (_, b) in zip(got, wanted, strict=True))
    if not error <= tolerance:
        raise _failure(f"the pruned archive differs from {what} by a relative error of {error:.3g}")


def _require_same_clothes(original: torch.jit.ScriptModule, delivered: torch.jit.ScriptModule, cut: Cut) -> None:
    """Methods, tensors' names, types, shapes less what was cut, and training flags are the original's."""
    if exported_methods(original) != exported_methods(delivered):
        raise _failure("the exported methods differ from the original's")
    lengths = {(name, one.axis): len(one.kept) for one in cut for name in (one.tensor, *one.aliases)}
    before = [
        (name, tuple(lengths.get((name, axis), size) for axis, size in enumerate(tensor.shape)), tensor.dtype)
        for name, tensor in original.state_dict().items()
    ]
    after = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in delivered.state_dict().items()]
    if before != after:
        raise _failure("names, shapes or types of stored tensors are not what pruning leaves of the original's")
    if _flags(original) != _flags(delivered):
        raise _failure("training flags differ from the original's")


def _flags(module: torch.jit.ScriptModule) -> list[tuple[str, bool]]:
    return [(name, bool(getattr(child, "training", False))) for name, child in module.named_modules()]


def _failure(text: str) -> JobFailureError:
    message = f"The pruned archive did not pass its check: {text}. Nothing was delivered; please report this."
    return JobFailureError(Reason.VERIFICATION_FAILED, message)
