"""Segments: structured selectors over membership labels, and their written form `region=eu-west, site in (a, b)`.

A membership's own `region`, `stage` and `device` are labels too, under those names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

import msgspec

from holdfast_shared.errors import Malformed

LABEL_PATTERN: Final = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
LabelField = Annotated[str, msgspec.Meta(pattern=LABEL_PATTERN)]
# A document has at most 32 KiB; a segment that needs more than this is a label that is missing.
TERMS_MAX: Final = 16
VALUES_MAX: Final = 256

_LABEL: Final = re.compile(LABEL_PATTERN.removeprefix("^").removesuffix("$"))
_TERM: Final = re.compile(
    r"\s*(?P<label>[^\s=!(),]+)\s*(?:(?P<sign>!=|=)\s*(?P<value>[^\s=!(),]+)|(?P<op>not\s+in|in)\s*\((?P<values>[^()]*)\))\s*"
)
_HINT: Final = "write it like: region=eu-west, site in (a, b), ring!=canary"


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """One condition. `not_in` also holds for a device that lacks the label."""

    label: LabelField
    op: Literal["in", "not_in"]
    values: Annotated[tuple[LabelField, ...], msgspec.Meta(min_length=1, max_length=VALUES_MAX)]

    def holds(self, labels: Mapping[str, str]) -> bool:
        return (labels.get(self.label) in self.values) == (self.op == "in")


Selector = Annotated[tuple[Term, ...], msgspec.Meta(max_length=TERMS_MAX)]
EVERYTHING: Final[tuple[Term, ...]] = ()


def holds(selector: Iterable[Term], labels: Mapping[str, str]) -> bool:
    """Whether every term holds. The empty selector is the whole fleet."""
    return all(term.holds(labels) for term in selector)


def disjoint(one: Iterable[Term], other: Iterable[Term]) -> bool:
    """Whether no device can be in both: some label's allowed values have nothing in common."""
    return any(inside is not None and not inside - outside for inside, outside in _allowed([*one, *other]).values())


def parse(text: str) -> tuple[Term, ...]:
    """A written selector. Raises Malformed that names the part that cannot be read; empty text or `*` is the whole fleet."""
    if text.strip() in ("", "*"):
        return EVERYTHING
    terms: list[Term] = []
    position = 0
    while True:
        found = _TERM.match(text, position)
        if not found:
            raise Malformed(
                f"cannot read {text[position:].strip()!r} in the selector {text!r}", field="selector", next_step=_HINT
            )
        terms.append(_term(found, text))
        position = found.end()
        if position == len(text):
            break
        if text[position] != ",":
            raise Malformed(
                f"expected a comma before {text[position:]!r} in the selector {text!r}",
                field="selector",
                next_step=_HINT,
            )
        position += 1
    if len(terms) > TERMS_MAX:
        raise Malformed(
            f"a selector has at most {TERMS_MAX} terms, this one {len(terms)}", field="selector", next_step=_HINT
        )
    return tuple(terms)


def written(selector: Iterable[Term]) -> str:
    """The written form; `parse(written(s)) == s`. The whole fleet is `*`."""
    parts = []
    for term in selector:
        if len(term.values) == 1:
            parts.append(f"{term.label}{'=' if term.op == 'in' else '!='}{term.values[0]}")
        else:
            parts.append(f"{term.label} {'in' if term.op == 'in' else 'not in'} ({', '.join(term.values)})")
    return ", ".join(parts) or "*"


def _term(found: re.Match[str], text: str) -> Term:
    if found["sign"]:
        op, values = ("in" if found["sign"] == "=" else "not_in"), [found["value"]]
    else:
        op, values = (
            ("in" if found["op"] == "in" else "not_in"),
            [value.strip() for value in found["values"].split(",")],
        )
    for word in [found["label"], *values]:
        if not _LABEL.fullmatch(word):
            raise Malformed(
                f"{word!r} is no label or value in the selector {text!r}", field="selector", next_step=_HINT
            )
    if len(values) > VALUES_MAX:
        raise Malformed(
            f"a term has at most {VALUES_MAX} values, this one {len(values)}", field="selector", next_step=_HINT
        )
    return Term(label=found["label"], op="in" if op == "in" else "not_in", values=tuple(values))


def _allowed(selector: Iterable[Term]) -> dict[str, tuple[set[str] | None, set[str]]]:
    """Per label: the values it may have (None: any), and those it may not."""
    allowed: dict[str, tuple[set[str] | None, set[str]]] = {}
    for term in selector:
        inside, outside = allowed.get(term.label, (None, set()))
        if term.op == "in":
            inside = set(term.values) if inside is None else inside & set(term.values)
        else:
            outside = outside | set(term.values)
        allowed[term.label] = (inside, outside)
    return allowed
