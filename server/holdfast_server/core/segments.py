"""Reasoning about selectors: whether one covers another, what both mean together, what one means inside a region.

Exact throughout: an answer here decides which devices a document moves. `None` stands for a selector that no device can
satisfy, which the written form cannot say.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

import msgspec

from holdfast_shared.errors import Malformed
from holdfast_shared.selector import TERMS_MAX, VALUES_MAX, Term

REGION: Final = "region"
# A segment stands in a document twice (its rule and its condemnation) and must leave room for others in 32 KiB.
SEGMENT_BYTES_MAX: Final = 4096

Match = tuple[Term, ...]


class Allowed(msgspec.Struct, frozen=True):
    """What one label may be: one of `inside` (None: anything, or nothing at all), and none of `outside`."""

    inside: frozenset[str] | None = None
    outside: frozenset[str] = frozenset()

    def both(self, other: Allowed) -> Allowed:
        outside = self.outside | other.outside
        if self.inside is None and other.inside is None:
            return Allowed(None, outside)
        inside = (
            self.inside & other.inside
            if self.inside is not None and other.inside is not None
            else self.inside or other.inside or frozenset()
        )
        return Allowed(inside - outside, frozenset())

    def within(self, wider: Allowed) -> bool:
        """Whether everything allowed here is allowed there."""
        if self.inside is not None:
            return (wider.inside is None or self.inside <= wider.inside) and not self.inside & wider.outside
        return wider.inside is None and wider.outside <= self.outside


def allowed(selector: Iterable[Term]) -> Mapping[str, Allowed]:
    """Per label what the selector allows; a label that is not here may be anything."""
    return _allowed(tuple(selector))


@lru_cache(maxsize=4096)  # composing asks the same of the same few segments again and again
def _allowed(selector: Match) -> Mapping[str, Allowed]:
    found: dict[str, Allowed] = {}
    for term in selector:
        values = frozenset(term.values)
        one = Allowed(values) if term.op == "in" else Allowed(None, values)
        found[term.label] = found.get(term.label, Allowed()).both(one)
    return found


def conjunction(*selectors: Iterable[Term]) -> Match | None:
    """The devices in all of them, in one normal form: a term a label, labels and values sorted. None: nobody."""
    found = allowed(term for selector in selectors for term in selector)
    if any(label.inside is not None and not label.inside for label in found.values()):
        return None
    return tuple(_term(label, found[label]) for label in sorted(found))


def covers(wide: Iterable[Term], narrow: Iterable[Term]) -> bool:
    """Whether every device that could be in `narrow` is in `wide`."""
    inner = allowed(narrow)
    if any(label.inside is not None and not label.inside for label in inner.values()):
        return True
    return all(inner.get(label, Allowed()).within(outer) for label, outer in allowed(wide).items())


def inside_region(selector: Iterable[Term], region: str) -> Match | None:
    """What is left to ask of a device that is known to be in `region`; None when none of them can match."""
    terms = tuple(selector)
    if any(term.label == REGION and not term.holds({REGION: region}) for term in terms):
        return None
    return conjunction(term for term in terms if term.label != REGION)


def union(one: Match, other: Match) -> Match | None:
    """One selector for exactly the devices of either, when there is one; None otherwise."""
    if covers(one, other):
        return one
    if covers(other, one):
        return other
    mine, theirs = allowed(one), allowed(other)
    differing = [label for label in mine.keys() | theirs.keys() if mine.get(label) != theirs.get(label)]
    if len(differing) != 1:
        return None
    label = differing[0]
    left, right = mine.get(label, Allowed()).inside, theirs.get(label, Allowed()).inside
    if left is None or right is None or len(left | right) > VALUES_MAX:
        return None
    return conjunction((term for term in one if term.label != label), [_term(label, Allowed(left | right))])


def check_size(selector: Sequence[Term], *, field: str) -> None:
    """Raises Malformed for a segment that would crowd everything else out of a document."""
    if len(selector) > TERMS_MAX or any(len(term.values) > VALUES_MAX for term in selector):
        raise Malformed(
            f"together with its wave this segment has more than {TERMS_MAX} terms, or {VALUES_MAX} values in one",
            field=field,
            next_step="give those devices a label of their own and select by it",
        )
    size_bytes = len(msgspec.json.encode(selector))
    if size_bytes > SEGMENT_BYTES_MAX:
        raise Malformed(
            f"this segment takes {size_bytes} bytes, more than {SEGMENT_BYTES_MAX}",
            field=field,
            next_step="give those devices a label of their own and select by it",
        )


def check_known(selector: Iterable[Term], devices: Iterable[Mapping[str, str]], *, field: str) -> None:
    """Raises Malformed for a label or a value that no device has, with the nearest that one does: a typo moves nobody."""
    known: dict[str, set[str]] = {}
    for labels in devices:
        for label, value in labels.items():
            known.setdefault(label, set()).add(value)
    for term in selector:
        if term.label not in known:
            raise Malformed(
                f"no device has the label {term.label!r}{_nearest(term.label, known)}",
                field=field,
                next_step=f"use one of: {_listed(known)}",
            )
        for value in term.values:
            if value not in known[term.label]:
                raise Malformed(
                    f"no device has {term.label}={value}{_nearest(value, known[term.label])}",
                    field=field,
                    next_step=f"use one of: {_listed(known[term.label])}",
                )


def _term(label: str, found: Allowed) -> Term:
    if found.inside is not None:
        return Term(label=label, op="in", values=tuple(sorted(found.inside)))
    return Term(label=label, op="not_in", values=tuple(sorted(found.outside)))


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


# Enough to recognise one's own; a fleet's device ids would fill a page.
_LISTED_MAX: Final = 12


def _listed(known: Iterable[str]) -> str:
    names = sorted(known)
    return ", ".join(names[:_LISTED_MAX]) + (f", … ({len(names)} in all)" if len(names) > _LISTED_MAX else "")
