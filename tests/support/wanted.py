"""What a device's commands say that it wants, for transcripts: releases by the digits of `playbook`."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_agent.core.commands import CollectGarbage, Command, StartFetch, StopFetch, Tell
from holdfast_gateway.control import Route, Routes
from holdfast_shared.assign import Target
from support.playbook import PIPELINE


def routes(commands: Sequence[Command]) -> tuple[str, str, str] | None:
    """(serving, refuge, testing) of the last Routes told, by their digits; None: none was."""
    told = [one.message for one in commands if isinstance(one, Tell) and isinstance(one.message, Routes)]
    if not told:
        return None
    route = next((one for one in told[-1].routes if one.pipeline == PIPELINE), Route(pipeline=PIPELINE))

    def digit(slot: Target | None) -> str:
        return slot.release.version.split(".")[1] if slot is not None else ""

    return digit(route.serving), digit(route.refuge), digit(route.testing)


def shadow(commands: Sequence[Command]) -> str | None:
    """What is to shadow by the last Routes told, by its digit; None: none were told."""
    told = [one.message for one in commands if isinstance(one, Tell) and isinstance(one.message, Routes)]
    if not told:
        return None
    found = next((one.shadow for one in told[-1].routes if one.pipeline == PIPELINE), None)
    return found.release.version.split(".")[1] if found is not None else ""


def fetches(commands: Sequence[Command]) -> list[str]:
    """Starts by their release's digit, `look <digit>` for one that asks nothing of the network, and `stop`, in order."""
    found = []
    for command in commands:
        if isinstance(command, StartFetch):
            digit = command.target.release.version.split(".")[1]
            found.append(f"look {digit}" if command.from_disk else digit)
        elif isinstance(command, StopFetch):
            found.append("stop")
    return found


def garbage(commands: Sequence[Command]) -> list[frozenset[str]]:
    return [command.keep for command in commands if isinstance(command, CollectGarbage)]
