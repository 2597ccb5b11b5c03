"""The proof that a shrunk archive equals the masked model, on the caller's samples and on random weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeAlias

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.proof.divergence import first_divergence, floating_types
from pruning_server.graph.proof.masked import CutMismatchError, changed_tensors, mask, randomize, weight_names
from pruning_server.graph.proof.pair import Call, Compared, OriginalRaisedError, Pair, ShrunkRaisedError, Story
from pruning_server.graph.proof.stored import HALF, adapted, settled, stored_dtypes
from pruning_server.graph.proof.stories import plan_stories
from pruning_server.graph.surgery.cut import Cut
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.spec.report import VerifySection

Loader: TypeAlias = Callable[[], torch.jit.ScriptModule]

MAX_ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 2e-1}
# A batch's statistics divide by spreads that may be tiny.
MAX_TRAINING_ERROR = {**MAX_ERROR, torch.float32: 1e-3}
# Values beyond these leave no room for what a model computes in between.
_LARGEST_OUTPUT = 1e30
_SMALLEST_OUTPUT = 1e-30
_GAINS = (1.0, 0.3)


def prove(
    load_original: Loader,
    load_shrunk: Loader,
    cut: Cut,
    samples: Sequence[Call],
    *,
    seed: int = 0,
    load_unrecovered: Loader | None = None,
    unrecovered_cut: Cut | None = None,
    folded: Collection[str] = (),
) -> VerifySection:
    """Compares the shrunk archive with the masked model, in every exported method and in training mode.

    *Masked* is the original's code with the shrunk archive's values at the kept coordinates and zeros where removed
    channels are consumed. Compared are the delivered weights (1e-4 in float32), and random ones (1e-9 in float64, where
    the model runs in it), since given weights can hide a mistake.

    Args:
        load_original: a fresh load of the caller's archive; called several times.
        load_shrunk: likewise of the archive to deliver.
        cut: what was removed.
        samples: calls with the caller's samples; at least one of `forward`, at two batch sizes where the model takes
            them.
        seed: of random weights and of whatever the model draws.
        load_unrecovered: the shrunk archive before recovery, whose values must be the original's, bit by bit: the
            masked model takes any values for right, so that this shows whether they are the right ones.
        unrecovered_cut: what was removed of that one, where it is another order of the same channels.
        folded: names of tensors that pruning itself rewrote, which are left out of that.

    Raises:
        JobFailureError: VERIFICATION_FAILED: they differ; the message names the first op that does.
    """
    if load_unrecovered is not None:
        _require_slices(
            load_original(), load_unrecovered(), cut if unrecovered_cut is None else unrecovered_cut, folded
        )
    proving = _Proving(load_original, load_shrunk, cut, tuple(samples), seed)
    try:
        given = proving.prove_given()
        randomized = proving.prove_randomized()
    except CutMismatchError as error:
        raise _failure(f"The shrunk archive does not hold what the plan leaves: {error}.") from error
    except (OriginalRaisedError, ShrunkRaisedError) as error:
        raise _failure(f"The original does not run beside the shrunk archive: {last_line(error)}") from error
    return VerifySection(
        max_relative_error=given.error,
        max_relative_error_randomized=randomized.error if randomized else None,
        batch_sizes=_batch_sizes(samples),
        input_shapes=_input_shapes(samples),
        dtype=_name(given.dtype),
        dtype_randomized=_name(randomized.dtype) if randomized else None,
        half_precision_difference=proving.half_precision_difference,
        methods=given.methods,
        train_mode=proving.train_mode,
        notes=tuple(dict.fromkeys(proving.notes)),
    )


@dataclass(frozen=True)
class _Checked:
    """The largest error of all stories, the type they were computed in, and the methods that ran."""

    error: float
    dtype: torch.dtype
    methods: tuple[str, ...]


class _MismatchError(Exception):
    """A story that the two models tell differently."""

    def __init__(self, pair: Pair, story: Story, error: float, raised: str = "") -> None:
        super().__init__(raised or f"a relative error of {error:.3g}")
        self.pair = pair
        self.story = story
        self.error = error
        self.raised = raised


@dataclass
class _Proving:
    """One proof under way."""

    load_original: Loader
    load_shrunk: Loader
    cut: Cut
    samples: tuple[Call, ...]
    seed: int
    notes: list[str] = field(default_factory=list)
    half_precision_difference: float | None = None
    train_mode: bool = False

    def prove_given(self) -> _Checked:
        """With the delivered weights, in float32 or the model's own wider type."""
        pair = self._pair(None)
        native = _native_dtype(pair.masked)
        if native not in HALF:
            return self._given_in(native, pair)
        self.half_precision_difference = self._native_difference(pair)
        try:
            return self._given_in(torch.float32, self._pair(torch.float32))
        except OriginalRaisedError as error:
            self.notes.append(f"The model runs in half precision only: {last_line(error)}")
            return self._given_in(native, pair)

    def _given_in(self, dtype: torch.dtype, pair: Pair) -> _Checked:
        try:
            return self._check(pair, dtype, MAX_ERROR[dtype])
        except _MismatchError as mismatch:
            exact = None if mismatch.raised or dtype is torch.float64 else self._exactly()
            if exact is None:
                raise self._located(mismatch, MAX_ERROR[dtype], "with the delivered weights") from mismatch
            text = f"In {_name(dtype)} rounding makes a difference of {mismatch.error:.3g}; it was proven in float64."
            self.notes.append(text)
            return exact

    def _exactly(self) -> _Checked | None:
        """The same in float64, which tells a mistake from the rounding of a model that magnifies it."""
        try:
            return self._check(self._pair(torch.float64), torch.float64, MAX_ERROR[torch.float64])
        except (OriginalRaisedError, _MismatchError):
            return None

    def prove_randomized(self) -> _Checked | None:
        """With random weights, in float64 where the model runs in it; None where none make the model run."""
        found = self._random_pair()
        if found is None:
            return None
        pair, dtype = found
        try:
            checked = self._check_random(pair, dtype)
            dtype = checked.dtype
            self._check_training(pair, dtype)
        except _MismatchError as mismatch:
            raise self._located(mismatch, MAX_ERROR[dtype], "with random weights") from mismatch
        return checked

    def _check_random(self, pair: Pair, dtype: torch.dtype) -> _Checked:
        try:
            return self._check(pair, dtype, MAX_ERROR[dtype])
        except _MismatchError as mismatch:
            # What the code converts on its own, past every type that could be widened, is only so exact.
            narrow = not mismatch.raised and torch.float32 in floating_types(pair, mismatch.story, self.seed)
            if not narrow or dtype is torch.float32:
                raise
            self.notes.append("Parts of the model compute in float32 whatever it is given.")
            return self._check(pair, torch.float32, MAX_ERROR[torch.float32])

    def _random_pair(self) -> tuple[Pair, torch.dtype] | None:
        """Random weights with which the model runs and gives numbers."""
        last = ""
        for dtype, everything, gain in product((torch.float64, torch.float32), (True, False), _GAINS):
            masked, shrunk = self._modules(dtype, without_dropout=True)
            only = None if everything else weight_names(masked, self.cut)
            randomize(masked, shrunk, self.cut, self.seed, only=only, gain=gain)
            pair = self._settle(masked, shrunk, dtype)
            try:
                scale = self._compare(pair, (self._forward[0],)).scale
            except OriginalRaisedError as error:
                last = last_line(error)
                continue
            except _MismatchError as mismatch:
                raise self._located(mismatch, MAX_ERROR[dtype], "with random weights") from mismatch
            if _SMALLEST_OUTPUT < scale < _LARGEST_OUTPUT:
                if dtype is torch.float32:
                    self.notes.append(f"The model does not run in float64: {last}")
                return pair, dtype
            last = last or "its outputs are not finite or 0"
        self.notes.append(f"No random weights make the model run: {last}")
        return None

    def _check_training(self, pair: Pair, dtype: torch.dtype) -> None:
        """Training mode, with the rates of dropout at 0; reasons are told for `forward`."""
        pair.train(mode=True)
        told = plan_stories(pair.masked, self.samples)
        for story in (story for stories in told.values() for story in stories):
            is_forward = story[0].method == "forward"
            try:
                compared = self._compare(pair, story)
            except OriginalRaisedError as error:
                if is_forward:
                    text = f"Training mode, batch of {_batch_of(story[0])}: the original raises: {last_line(error)}"
                    self.notes.append(text)
                continue
            if compared.error <= MAX_TRAINING_ERROR[dtype]:
                self.train_mode = self.train_mode or is_forward
            elif compared.same_draws:
                raise _MismatchError(pair, story, compared.error)
            else:
                self.notes.append("Training mode was not compared: what the model draws depends on its channels.")
        pair.train(mode=False)

    # --- Parts --------------------------------------------------------------------------------------------------------

    def _native_difference(self, pair: Pair) -> float | None:
        try:
            return max(self._compare(pair, (call,)).error for call in self._forward)
        except (OriginalRaisedError, _MismatchError):
            return None

    def _pair(self, dtype: torch.dtype | None) -> Pair:
        return self._settle(*self._modules(dtype), dtype)

    def _modules(
        self, dtype: torch.dtype | None, *, without_dropout: bool = False
    ) -> tuple[torch.jit.ScriptModule, torch.jit.ScriptModule]:
        """The masked and the shrunk model; neither has run."""
        masked, shrunk = (
            adapted(load(), dtype, without_dropout=without_dropout) for load in (self.load_original, self.load_shrunk)
        )
        mask(masked, shrunk, self.cut)
        return masked, shrunk

    def _settle(
        self, masked: torch.jit.ScriptModule, shrunk: torch.jit.ScriptModule, dtype: torch.dtype | None
    ) -> Pair:
        return Pair(settled(masked).eval(), settled(shrunk).eval(), self.cut, self.seed, dtype=dtype)

    @property
    def _forward(self) -> tuple[Call, ...]:
        return tuple(call for call in self.samples if call.method == "forward")

    def _check(self, pair: Pair, dtype: torch.dtype, tolerance: float) -> _Checked:
        """All stories of all methods; what the original does not take is noted.

        Raises:
            OriginalRaisedError: it takes none of forward's samples.
        """
        worst, methods = 0.0, []
        for method, stories in plan_stories(pair.masked, self.samples).items():
            refusals = [] if stories else ["no samples were given for it"]
            for story in stories:
                try:
                    compared = self._compare(pair, story)
                except OriginalRaisedError as error:
                    refusals.append(last_line(error))
                    continue
                if not compared.error <= tolerance:
                    raise _MismatchError(pair, story, compared.error)
                worst = max(worst, compared.error)
                methods.append(method)
            if method == "forward" and method not in methods:
                raise OriginalRaisedError(refusals[0])
            how = "with all arguments" if method in methods else "at all"
            self.notes += [f"Method {method} was not compared {how}: {text}" for text in refusals[:1]]
        return _Checked(worst, dtype, tuple(dict.fromkeys(methods)))

    def _compare(self, pair: Pair, story: Story) -> Compared:
        try:
            return pair.compare(story)
        except OriginalRaisedError as error:
            _pass_on_memory(error)
            raise
        except ShrunkRaisedError as error:
            _pass_on_memory(error)
            raise _MismatchError(pair, story, float("inf"), last_line(error)) from error

    def _located(self, mismatch: _MismatchError, tolerance: float, where: str) -> JobFailureError:
        """The failure, with the first op that does something else."""
        found = first_divergence(mismatch.pair, mismatch.story, tolerance, self.seed)
        called = " and then ".join(call.method for call in mismatch.story)
        called += " in training mode" if mismatch.pair.masked.training else ""
        said = f"it raises: {mismatch.raised}" if mismatch.raised else f"a relative error of {mismatch.error:.3g}"
        first = f" First op that differs: {found}." if found else ""
        metadata = {"op": found.op, "source": found.source} if found else {}
        text = f"The shrunk archive differs from the masked model in {called}, {where}: {said}.{first}"
        return _failure(text, metadata)


def _require_slices(
    original: torch.jit.ScriptModule, shrunk: torch.jit.ScriptModule, cut: Cut, folded: Collection[str]
) -> None:
    try:
        changed = [name for name in changed_tensors(original, shrunk, cut) if name not in folded]
    except CutMismatchError as error:
        raise _failure(f"The shrunk archive does not hold what the plan leaves: {error}.") from error
    if changed:
        raise _failure(f"'{changed[0]}' does not hold the values of the channels that were to be kept.")


def _failure(text: str, metadata: Mapping[str, str] | None = None) -> JobFailureError:
    message = f"{text} Nothing was delivered; please report this."
    return JobFailureError(Reason.VERIFICATION_FAILED, message, metadata=metadata)


def _pass_on_memory(error: Exception) -> None:
    """A failed allocation says nothing about the model."""
    if error.__cause__ is not None and is_out_of_memory(error.__cause__):
        raise error.__cause__


def _native_dtype(module: torch.jit.ScriptModule) -> torch.dtype:
    """Half precision wherever some of what is stored is of it, else the type of most numbers."""
    found = stored_dtypes(module)
    half = [dtype for dtype in found if dtype in HALF]
    return half[0] if half else found[0] if found and found[0] in MAX_ERROR else torch.float32


def _batch_of(call: Call) -> int:
    return next((len(one) for one in call.arguments if isinstance(one, torch.Tensor) and one.dim()), 1)


def _batch_sizes(samples: Sequence[Call]) -> tuple[int, ...]:
    return tuple(sorted({_batch_of(call) for call in samples if call.method == "forward"}))


def _input_shapes(samples: Sequence[Call]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(
        tuple(tuple(one.shape) for one in call.arguments if isinstance(one, torch.Tensor))
        for call in samples
        if call.method == "forward"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
