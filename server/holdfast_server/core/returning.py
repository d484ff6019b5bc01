"""Devices on their way back from a release: who served it, and when each said, signed, that it serves something else."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a device last reported of one pipeline: the mark of what serves (None: nothing), and when it said so.

    A mark is a release's digest, or, where its environment counts, `<digest>@<environment>`.
    """

    device: str
    serving: str | None
    at_monotonic_us: int


class Returning(msgspec.Struct, frozen=True, kw_only=True):
    """`devices` served the release when it was taken back, or were found to serve it later; `back`: when each was off it."""

    devices: tuple[str, ...] = ()
    back: dict[str, int] = {}

    @property
    def complete(self) -> bool:
        return len(self.back) == len(self.devices)


def observed(returning: Returning, mark: str, reports: Iterable[Said]) -> Returning:
    """After these reports. A device that serves the release is on its way; one that answers with another is back.

    Its first such report counts: what it serves later is another story. A device that serves nothing is not back.
    """
    devices, back = set(returning.devices), dict(returning.back)
    for said in reports:
        if said.serving == mark:
            devices.add(said.device)
            back.pop(said.device, None)  # it was back, and took it up again: it is on its way once more
        elif said.serving is not None and said.device in devices and said.device not in back:
            back[said.device] = said.at_monotonic_us
    return Returning(devices=tuple(sorted(devices)), back=back)
