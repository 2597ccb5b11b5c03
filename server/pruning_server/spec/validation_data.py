"""What must hold in what a request says of its data: how they are fed, split and judged, and names in the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pruning_server.spec import ranges
from pruning_server.spec.problems import Problem, check_each, check_one, invalid
from pruning_server.spec.request import DynamicAxes, Evaluation, Preprocessing, PruningSpec, SplitFractions

MAX_BATCH_SIZE = 1_000_000
MAX_NAME_CHARACTERS = 500
MAX_EXCLUDED_LAYERS = 10_000
MAX_ARGUMENTS = 1000
MAX_INPUTS = 64
MAX_INPUT_AXES = 16
SPLIT_SUM_TOLERANCE = 1e-9


def find_evaluation_problems(evaluation: Evaluation) -> Iterator[Problem]:
    """Yields what is wrong with how the result is judged."""
    field = "spec.evaluation"
    batch_size = ranges.between(1, MAX_BATCH_SIZE)
    yield from check_one(f"{field}.margin", evaluation.margin, ranges.between_zero_and_one)
    yield from check_one(f"{field}.confidence_level", evaluation.confidence_level, ranges.between_half_and_one)
    yield from _split(evaluation.split)
    yield from check_one(f"{field}.latency_batch_size", evaluation.latency_batch_size, batch_size)
    yield from check_one(f"{field}.batch_size", evaluation.batch_size, batch_size)


def _split(split: SplitFractions) -> Iterator[Problem]:
    field = "spec.evaluation.split"
    parts = {"fit": split.fit, "select": split.select, "report": split.report, "calibrate": split.calibrate}
    problems = [
        problem
        for name, fraction in parts.items()
        for problem in check_one(
            f"{field}.{name}", fraction, ranges.from_zero_to_one if name == "calibrate" else ranges.above_zero_to_one
        )
    ]
    yield from problems
    total = sum(parts.values())
    if not problems and abs(total - 1.0) > SPLIT_SUM_TOLERANCE:
        yield invalid(field, f"the fractions must add up to 1; they add up to {total:g}")


def find_preprocessing_problems(given: Preprocessing) -> Iterator[Problem]:
    """Yields what is wrong with how inputs are fed."""
    field = "spec.preprocessing"
    yield from check_one(f"{field}.scale", given.scale, ranges.above_zero)
    yield from check_each(f"{field}.mean", given.mean, ranges.finite)
    yield from check_each(f"{field}.std", given.std, ranges.above_zero)
    if given.mean and given.std and len(given.mean) != len(given.std):
        yield invalid(
            f"{field}.std", f"has {len(given.std)} values, mean has {len(given.mean)}; send one of each per channel"
        )


def find_argument_problems(spec: PruningSpec) -> Iterator[Problem]:
    """Yields what is wrong with scalar arguments of forward."""
    if len(spec.arguments) > MAX_ARGUMENTS:
        yield invalid("spec.arguments", f"has {len(spec.arguments)} entries; at most {MAX_ARGUMENTS} are taken")
        return
    seen: set[int] = set()
    for index, argument in enumerate(spec.arguments):
        field = f"spec.arguments[{index}]"
        if argument.position in seen:
            yield invalid(f"{field}.position", f"position {argument.position} is given twice")
        yield from check_one(f"{field}.position", argument.position, ranges.at_least_zero)
        if (why := ranges.scalar(argument.value)) is not None:
            yield invalid(f"{field}.value", why)
        seen.add(argument.position)


def find_axes_problems(field: str, given: Sequence[DynamicAxes]) -> Iterator[Problem]:
    """Yields what is wrong with axes that may have any length."""
    if len(given) > MAX_INPUTS:
        yield invalid(field, f"has {len(given)} entries; at most {MAX_INPUTS} are taken")
        return
    seen: set[int] = set()
    for index, one in enumerate(given):
        entry = f"{field}[{index}]"
        yield from check_one(f"{entry}.input", one.input, ranges.between(0, MAX_INPUTS - 1))
        if one.input in seen:
            yield invalid(f"{entry}.input", f"input {one.input} is given twice")
        if not one.axes or len(one.axes) > MAX_INPUT_AXES:
            yield invalid(f"{entry}.axes", f"names {len(one.axes)} axes; from 1 to {MAX_INPUT_AXES} are taken")
        elif len(set(one.axes)) < len(one.axes):
            yield invalid(f"{entry}.axes", "names an axis twice")
        elif 0 in one.axes:
            yield invalid(f"{entry}.axes", "names axis 0, the batch, which is always free; leave it out")
        else:
            yield from check_each(f"{entry}.axes", one.axes, ranges.between(1, MAX_INPUT_AXES - 1))
        seen.add(one.input)


def find_name_problems(spec: PruningSpec) -> Iterator[Problem]:
    """Yields what is wrong with names of layers, methods and outputs."""
    name = ranges.text(1, MAX_NAME_CHARACTERS)
    if len(spec.exclude_layers) > MAX_EXCLUDED_LAYERS:
        yield invalid(
            "spec.exclude_layers",
            f"has {len(spec.exclude_layers)} entries, at most {MAX_EXCLUDED_LAYERS} are taken; use wildcards",
        )
    yield from check_each("spec.exclude_layers", spec.exclude_layers, name)
    yield from check_one("spec.output_selector", spec.output_selector, ranges.text(0, MAX_NAME_CHARACTERS))
    seen: set[str] = set()
    for index, item in enumerate(spec.method_samples):
        field = f"spec.method_samples[{index}].method"
        yield from check_one(field, item.method, name)
        if item.method in seen:
            yield invalid(field, f"{item.method!r} is given twice")
        seen.add(item.method)
