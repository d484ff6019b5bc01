"""From bytes on a device's topic to a report that is believed: verified by that device's own key, then parsed, then compared
with where it came from. Pure.
"""

from __future__ import annotations

from typing import Final, Literal

from holdfast_shared import signing, strict_json
from holdfast_shared.errors import Malformed, NotSupported, Untrusted
from holdfast_shared.signing import PublicKey
from holdfast_shared.wire.report import ENVELOPE_BYTES_MAX, PAYLOAD_BYTES_MAX, TYPE, Report

Kind = Literal["health", "event"]
# One slot's attempts in one window: far above what a small device can do, and far below what makes sums overflow, or the
# exact binomial slow, on the word of one device.
WINDOW_REQUESTS_MAX: Final = 10_000_000
# PostgreSQL keeps no U+0000 in a text, and no text of ours has one.
_NUL: Final = b"\\u0000"


def read(envelope: bytes, *, fleet: str, device: str, kind: Kind, key: PublicKey) -> Report:
    """What `device` said. `key` is that of its membership. Raises Malformed, Untrusted or NotSupported."""
    payload = signing.verify(envelope, TYPE, {key.key_id: key}, size_bytes_max=ENVELOPE_BYTES_MAX).payload
    if _NUL in payload:
        raise Malformed("the report holds U+0000", next_step="leave the character out of every text")
    report = strict_json.decode(payload, Report, what="report", size_bytes_max=PAYLOAD_BYTES_MAX)
    for field, said, expected in (
        ("fleet", report.fleet, fleet),
        ("device", report.device, device),
        ("kind", report.kind, kind),
    ):
        if said != expected:
            raise Untrusted(
                f"it says {said}, but came on the topic of {expected}",
                field=field,
                next_step="publish a report on the topic it is about",
            )
    unknown = sorted(set(report.critical) - set(Report.__struct_fields__))
    if unknown:
        raise NotSupported(
            f"it calls {', '.join(unknown)} critical, which this server does not know",
            field="critical",
            next_step="update the server",
        )
    _check_counts(report)
    return report


def _check_counts(report: Report) -> None:
    for index, window in enumerate(report.windows):
        counts = (window.requests, window.errors, window.nulls, window.hangs, window.latency.count, window.labelled)
        if max(counts) > WINDOW_REQUESTS_MAX:
            raise Malformed(
                f"a window counts at most {WINDOW_REQUESTS_MAX} requests, this one {max(counts)}",
                field=f"windows[{index}]",
                next_step="close windows sooner",
            )
