"""How answers look: JSON on one line, aligned tables, sizes, ages, bars. What a server or a device named is never trusted to
be printable: control characters would let it rewrite the operator's terminal.
"""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

_COLOURS: Final[Mapping[str, str]] = {
    "pass": "green",
    "passed": "green",
    "finished": "green",
    "accepted": "green",
    "online": "green",
    "fail": "red",
    "failed": "red",
    "halted": "red",
    "aborted": "red",
    "refused": "red",
    "degraded": "red",
    "insufficient": "yellow",
    "paused": "yellow",
    "waiting": "yellow",
    "running": "cyan",
    "released": "cyan",
    "planned": "cyan",
}
_DIGEST_SHOWN: Final = 19  # `sha256:` and twelve digits: as much as people compare by eye
_KIB: Final = 1024
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def as_json(value: object) -> None:
    """One object, one line."""
    click.echo(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def plain(value: object) -> str:
    """`value` on one line without control or format characters."""
    text = "" if value is None else str(value)
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)


def state(word: object) -> str:
    """A state or verdict in its colour, where the terminal has any."""
    text = plain(word)
    return click.style(text, fg=_COLOURS.get(text))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their longest cell; states in colour."""
    lines = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    click.echo(
        click.style("  ".join(name.ljust(width) for name, width in zip(head, widths, strict=True)).rstrip(), dim=True)
    )
    for line in lines:
        cells = (
            click.style(cell.ljust(width), fg=_COLOURS.get(cell)) for cell, width in zip(line, widths, strict=True)
        )
        click.echo("  ".join(cells).rstrip())


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; what is None or empty is left out."""
    shown = [(name, plain(value)) for name, value in pairs if value not in (None, "", [], {}, ())]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {click.style(value, fg=_COLOURS.get(value))}")


def short(digest: object) -> str:
    return plain(digest)[:_DIGEST_SHOWN]


def size(size_bytes: int) -> str:
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if amount < _KIB:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _KIB
    return f"{amount:.1f} GiB"


def ago(at_us: object) -> str:
    """How long ago a wall time in microseconds was."""
    if not isinstance(at_us, int | float) or not at_us:
        return "never"
    seconds = max(0, int(time.time() - at_us / 1e6))
    for limit, step, unit in ((_MINUTE_S, 1, "s"), (_HOUR_S, _MINUTE_S, "min"), (_DAY_S, _HOUR_S, "h")):
        if seconds < limit:
            return f"{seconds // step} {unit} ago"
    return f"{seconds // _DAY_S} d ago"


def share(of_10000: object) -> str:
    """A share in 1/10 000 as per cent."""
    return f"{float(of_10000) / 100:g} %" if isinstance(of_10000, int | float) else ""


def bar(part: float, whole: float, width: int = 24) -> str:
    """Filled in proportion; never empty for a part above nothing, never full for one below the whole."""
    if whole <= 0:
        return "·" * width
    filled = round(width * min(part, whole) / whole)
    if 0 < part < whole:
        filled = min(max(filled, 1), width - 1)
    return "█" * filled + "░" * (width - filled)


def labels(value: Any) -> str:
    return ", ".join(f"{name}={text}" for name, text in sorted(value.items())) if isinstance(value, dict) else ""
