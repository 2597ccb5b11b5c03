"""The condition language: what is read, what is refused and where, and that nothing else ever comes out."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.specs import good_spec
from pruning_server.errors import InvalidRequestError
from pruning_server.service.status import code_of
from pruning_server.spec.condition import (
    FEATURES,
    Condition,
    ConditionError,
    FeatureLevel,
    Role,
    check_granularity,
    natural_granularity,
    parse_condition,
    tree,
)
from pruning_server.spec.condition.language import FUNCTIONS
from pruning_server.spec.request import ConditionalStrategy, Granularity, Target, TargetKind
from pruning_server.spec.validation import check_implemented, check_spec

NUMBERS = sorted(name for name, info in FEATURES.items() if not info.is_text)
TEXTS = sorted(name for name, info in FEATURES.items() if info.is_text)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("abs_weight < 0.5 * layer_std", ("abs_weight", "layer_std")),
        ('weight_correlation > 0.95 and kind == "conv"', ("weight_correlation", "kind")),
        ("apoz > 0.9", ("apoz",)),
        ("p_harm<0.05", ("p_harm",)),
        ("  wald_p > .05  ", ("wald_p",)),
        ("0 < l1 <= 1e-3 or not (kind in ['conv', 'linear'])", ("l1", "kind")),
        ("min(l1, l2, 2) ** 2 / -macs + abs(index) > sqrt(4) - log(depth)", ("l1", "l2", "macs", "index", "depth")),
        ("name != 'слой.層'", ("name",)),
        ('"conv" == kind', ("kind",)),
    ],
)
def test_reads(text: str, features: tuple[str, ...]) -> None:
    assert parse_condition(text).features == features


REFUSED = {
    "": (1, "empty"),
    "   ": (1, "empty"),
    "l1 + 1": (1, "true or false"),
    "kind": (1, "true or false"),
    "3": (1, "true or false"),
    "True": (1, "depends on the model"),
    "1 < 2": (1, "name a feature"),
    "l1 < 1 and 1 < 2": (12, "name a feature"),
    "0 < 1 < l1": (1, "name a feature"),
    "kind > 3": (1, "a text and a number"),
    "l1 == 'conv'": (1, "a number and a text"),
    "kind < 'conv'": (1, "==, != or in"),
    "kind + 1 > 2": (1, "a number is needed"),
    "not l1": (5, "`not` needs a condition"),
    "l1 < 1 and l2": (12, "`and` joins conditions"),
    "l1 == (l2 < 1)": (8, "joined with `and`"),
    "-(l1 < 2) < 1": (3, "a number is needed"),
    "wieght < 1": (1, "did you mean weight"),
    "l1 < sqr(2)": (6, "did you mean sqrt"),
    "kind == 'convv'": (9, "did you mean conv"),
    "kind in ['conv', 'lin']": (18, "did you mean linear"),
    "kind in []": (9, "a list of texts"),
    "l1 in ['a']": (1, "a feature that is a text"),
    "kind in [1]": (10, "texts only"),
    "kind in 'conv'": (9, "a list of texts"),
    "l1(2) < 1": (1, "takes nothing"),
    "min(l1) < 1": (1, "2 to 20"),
    "abs(l1, l2) < 1": (1, "one number"),
    "l1 < 1 & l2 < 1": (8, "write `and`"),
    "l1 < 1 | l2 < 1": (8, "write `or`"),
    "~(l1 < 1)": (1, "write `not`"),
    "l1 = 1": (4, "compare with `==`"),
    "l1 is 1": (1, "`is` is not"),
    "l1 // 2 < 1": (1, "operator"),
    "l1 % 2 < 1": (4, "remainder"),
    "l1.real < 1": (3, "no attributes"),
    "l1[0] < 1": (1, "an index"),
    "l1 if l2 < 1 else l2": (1, "`if`"),
    "[x for x in y]": (1, "`for`"),
    "lambda: 1": (7, "':'"),
    "l1 := 1": (4, "':'"),
    "__import__('os').system('true') < 1": (17, "no attributes"),
    "l1 < (": (6, "not closed"),
    "l1) < (3": (3, "no partner"),
    "(l1] < 3": (4, "no partner"),
    "l1 <": (5, "can be read"),
    "l1 < 1 l2": (8, "can be read"),
    "l1 < 1, l2 > 1": (1, "a list"),
    "l1 < 1e999": (6, "too large"),
    "l1 < " + "9" * 5000: (6, "too large"),
    "l1 < 1or l2 < 1": (7, "a number ends here"),
    "l1 < 0x10": (7, "a number ends here"),
    "l1 < 01": (6, "leading zeros"),
    "name == 'a": (9, "no closing quote"),
    r"name == 'a\n'": (9, "no escapes"),
    "name == 'a\tb'": (9, "printable"),
    "l1\n< 1": (3, "one line"),
    "é < 1": (1, "'é'"),
    'name == f"a"': (10, "an operator before it"),
    "(" * 900: (41, "too deeply"),
    "-" * 5000 + "l1 < 1": (21, "too deeply"),
    "not " * 2000 + "l1 < 1": (81, "too deeply"),
    "2 ** " * 150 + "l1 < 1": (None, "too deeply"),
    "1 + " * 150 + "l1 < 1": (None, "too deeply"),
    "l1 < 1 or " * 300 + "l1 < 1": (None, "1,000 words"),
    " " * 10_001 + "l1 < 1": (10_001, "10,000 characters"),
}


@pytest.mark.parametrize("text", REFUSED, ids=[text[:30] for text in REFUSED])
def test_refuses_and_points_at_the_column(text: str) -> None:
    column, why = REFUSED[text]
    with pytest.raises(ConditionError, match=r"^spec\.conditional\.condition: column") as caught:
        parse_condition(text)
    assert why in caught.value.message
    assert column is None or caught.value.column == column
    shown, caret = caught.value.description.splitlines()[-2:]
    assert caret.strip() == "^"
    assert len(caret) <= len(shown) + 1
    if caught.value.column <= len(text) and text[caught.value.column - 1].isprintable():
        assert shown[len(caret) - 1] == text[caught.value.column - 1]


def test_a_refusal_is_an_invalid_argument() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_condition("l1 <")
    assert code_of(caught.value).name == "INVALID_ARGUMENT"
    assert [one.field for one in caught.value.violations] == ["spec.conditional.condition"]


# --- Anything at all --------------------------------------------------------------------------------------------------

WORDS = [
    *NUMBERS, *TEXTS, *FUNCTIONS, "and", "or", "not", "in", "is", "if", "else", "lambda", "for", "None", "True", "await",
    "(", ")", "[", "]", ",", "<", "<=", "==", "!=", ">", "+", "-", "*", "/", "**", "//", "&", ".", ":", "=", ":=", "@",
    "1", "0.5", "1e5", "1e400", "01", "1_0", "0x1", "'conv'", '"a"', "'", "\\", "\n", "\t", "\0", "é", "#", "f", "b",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join))
def test_anything_gives_a_tree_or_a_condition_error(text: str) -> None:
    found = read(text)
    if isinstance(found, int):
        assert 1 <= found <= len(text) + 1
    else:
        assert found.features
        assert tree.kind_of(found.tree) is tree.Kind.TRUTH


def read(text: str) -> Condition | int:
    """The condition, or the column of the error."""
    try:
        return parse_condition(text)
    except ConditionError as error:
        return error.column


numbers = st.recursive(
    st.sampled_from(NUMBERS) | st.floats(0, 1e6).map(repr) | st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        inner.map(lambda p: f"-{p}"),
        inner.map(lambda p: f"abs({p})"),
        st.tuples(inner, inner).map(lambda p: f"max({p[0]}, {p[1]})"),
    ),
    max_leaves=4,
)
links = st.tuples(st.sampled_from(NUMBERS), st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers).map(" ".join)
chains = st.tuples(numbers, st.sampled_from(NUMBERS), numbers).map(" < ".join)
texts = st.sampled_from(["kind == 'conv'", 'name != "a\'b"', "kind in ['conv', 'linear']", "name not in ('x',)"])
conditions = st.recursive(
    links | chains | texts,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda p: " and ".join(f"({one})" for one in p)),
        st.lists(inner, min_size=2, max_size=3).map(" or ".join),
        inner.map(lambda p: f"not ({p})"),
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(conditions)
def test_rendered_conditions_read_as_the_same_tree(text: str) -> None:
    first = parse_condition(text).tree
    assert without_columns(parse_condition(tree.render(first)).tree) == without_columns(first)


def without_columns(node: Any) -> Any:
    """The tree as nested tuples."""
    if isinstance(node, tuple):
        return tuple(without_columns(one) for one in node)
    if not dataclasses.is_dataclass(node):
        return node
    fields = (field.name for field in dataclasses.fields(node) if field.name != "column")
    return (type(node).__name__, *(without_columns(getattr(node, name)) for name in fields))


# --- Granularity and the request --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEATURES)
def test_coarser_features_fit_and_finer_ones_do_not(name: str) -> None:
    info = FEATURES[name]
    condition = parse_condition(
        f"{name} == 'x.y'" if name == "name" else f"{name} == 'conv'" if info.is_text else f"{name} < 1"
    )
    refused = set()
    for granularity in (Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD):
        try:
            check_granularity(condition, granularity)
        except ConditionError:
            refused.add(granularity)
    if info.level is FeatureLevel.WEIGHT:
        assert refused == {Granularity.CHANNEL, Granularity.HEAD}
    else:
        assert refused == ({Granularity.WEIGHT} if info.role is not Role.PLAIN else set())


@pytest.mark.parametrize(
    ("text", "granularity"),
    [
        ("apoz > 0.9", Granularity.CHANNEL),
        ("apoz > 0.9 and kind == 'conv'", Granularity.CHANNEL),
        ("apoz > 0.9 and weight < 1", Granularity.WEIGHT),
        ("depth > 0.5", Granularity.WEIGHT),
        ("not a condition", Granularity.WEIGHT),
    ],
)
def test_the_features_say_what_goes_where_the_request_does_not(text: str, granularity: Granularity) -> None:
    assert natural_granularity(text) is granularity


def conditional(text: str, granularity: Granularity = Granularity.CHANNEL, target: Target | None = None) -> Any:
    return good_spec(strategy=ConditionalStrategy(condition=text, granularity=granularity), target=target)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (conditional("l1 <"), "spec.conditional.condition"),
        (conditional("weight < 1"), "spec.conditional.condition"),
        (conditional("p_harm < 1", Granularity.WEIGHT), "spec.conditional.condition"),
        (conditional("l1 < 1", target=Target(kind=TargetKind.THRESHOLD, value=0.1)), "spec.threshold"),
    ],
)
def test_bad_conditions_are_refused_with_the_request(spec: Any, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_spec(spec)
    assert [one.field for one in caught.value.violations] == [field]


@pytest.mark.parametrize("granularity", [Granularity.CHANNEL, Granularity.HEAD])
@pytest.mark.parametrize("kind", [None, TargetKind.SPARSITY, TargetKind.MACS_RATIO, TargetKind.PARAMETER_RATIO])
def test_good_conditions_pass(granularity: Granularity, kind: TargetKind | None) -> None:
    target = None if kind is None else Target(kind=kind, value=0.5)
    spec = conditional("l1 < 1", granularity, target)
    check_spec(spec)
    check_implemented(spec)


def test_the_catalogue_is_complete() -> None:
    for name, info in FEATURES.items():
        assert info.name == name
        assert info.formula
        assert info.source
        assert info.cost
        assert name not in FUNCTIONS
        assert name.isidentifier()
    assert math.prod(len(list(group)) for _, group in itertools.groupby(sorted(FEATURES))) == 1
