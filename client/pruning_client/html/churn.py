"""The chapter on samples that changed sides, with pictures of the worst."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from pruning_client.html.facts import MISSING, Chapter, Fact, Picture, Segment, Table, percent, words
from pruning_client.reading import Section, items, number, section, text
from pruning_client.text import printable

_MAX_PICTURES = 24
# Above, it is no thumbnail.
_MAX_PICTURE_CHARACTERS = 200_000
_AGREEMENT = "agreement"
_PNG = b"\x89PNG\r\n\x1a\n"


def churn_chapter(report: Section) -> Chapter:
    """Returns how many samples changed sides, and the worst of them."""
    accuracy = section(report, "accuracy")
    churn, samples = section(accuracy, "churn"), number(accuracy, "samples")
    lost, won = (
        found
        if (found := number(churn, f"{side}_share")) is not None
        else (count / samples if (count := number(accuracy, side)) is not None and samples else None)
        for side in ("right_to_wrong", "wrong_to_right")
    )
    listed = [one for one in items(churn, "samples") if isinstance(one, dict)][:_MAX_PICTURES]
    seen = [(one, _picture(one)) for one in listed]
    pictures, others = tuple(found for _, found in seen if found), [one for one, found in seen if found is None]
    bar, legend = _sides(text(accuracy, "metric"), number(accuracy, "original"), lost, won)
    agreement = number(churn, "agreement")
    notes = () if bar or listed else ("A sample is neither right nor wrong here.",)
    title = "Those that follow" if pictures else "The worst of them"
    table = Table(title, ("row", "target", "original", "pruned", "change", "loss"), _changed(others))
    return Chapter(
        "churn",
        "Samples that changed sides",
        tables=(table,) if others else (),
        facts=() if agreement is None else (Fact("both models predict the same", f"{agreement:.2%}"),),
        pictures=pictures,
        notes=notes,
        bar=bar,
        legend=legend,
    )


def _sides(
    metric: str, right: float | None, lost: float | None, won: float | None
) -> tuple[tuple[Segment, ...], tuple[tuple[str, str], ...]]:
    if right is None or lost is None or won is None or not 0 <= lost <= right <= 1 or not 0 <= won <= 1 - right:
        return (), ()
    parts: tuple[tuple[str, str, float], ...] = (
        ("kept", "right in both", right - lost),
        ("lost", "right to wrong", lost),
        ("won", "wrong to right", won),
        ("frozen", "wrong in both", 1 - right - won),
    )
    if metric == _AGREEMENT:
        parts = (("kept", "the same answer", right - lost), ("lost", "another answer", lost))
    return (
        tuple(Segment(kind, percent(share)) for kind, _, share in parts if share > 0),
        tuple((kind, f"{name} {share:.2%}") for kind, name, share in parts),
    )


def _picture(one: Section) -> Picture | None:
    encoded = one.get("thumbnail")
    if not isinstance(encoded, str) or not 0 < len(encoded) <= _MAX_PICTURE_CHARACTERS or not encoded.isascii():
        return None
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not content.startswith(_PNG):
        return None
    row, target, original, pruned, change, loss = _changed([one])[0]
    lines = (f"{original} → {pruned}", f"target {target}", f"row {row}", f"loss {loss}" if loss else "")
    label = f"Sample {row}: target {target}, original {original}, pruned {pruned}, {change}"
    return Picture(encoded, label, tuple(line for line in lines if line))


def _changed(samples: Sequence[Section]) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            text(one, "row") or MISSING,
            *(_choice(one, key) for key in ("target", "original", "pruned")),
            words(text(one, "change")),
            "" if (loss := number(one, "loss_change")) is None else f"{loss:+.3g}",
        )
        for one in samples
    )


def _choice(one: Section, key: str) -> str:
    found = number(one, key)
    return printable(text(one, key), 40) or MISSING if found is None else f"{found:.6g}"
