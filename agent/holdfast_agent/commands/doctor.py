"""`holdfast-agent doctor`: everything a device needs, looked at one by one; each line says what it found and what helps.

It changes nothing but one small file that it writes and deletes, and needs neither agent nor gateway to run. A check that
cannot be made is a finding, never a crash: a sick device is where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from holdfast_agent.commands import around, certificate, on_device, within
from holdfast_agent.commands.told import Finding, Told
from holdfast_agent.edge import configuration
from holdfast_shared.errors import HoldfastError

_WIDTH: Final = 14


def run(config: Path) -> Told:
    """Look at everything; failed when anything fails."""
    found = list(_findings(config))
    failed = any(one.state == "fail" for one in found)
    answer = {"ok": not failed, "checks": [msgspec.to_builtins(one) for one in found]}
    return Told(answer, [line for one in found for line in _lines(one)], failed)


def _findings(config: Path) -> Iterator[Finding]:
    try:
        found = configuration.load(config)
    except HoldfastError as error:
        yield Finding(check="configuration", state="fail", said=error.message, do=error.next_step)
        return  # without it, nothing else is known
    yield Finding(check="configuration", state="ok", said=f"{config}: every field is well")
    on_device.become_owner(found.folder.root)
    known, finding = within.identity_of(found)
    yield finding
    yield within.state_folder(found.folder)
    saved, finding = within.record_of(found.folder)
    yield finding
    yield within.disk(found.folder, saved)
    yield within.clock(known, saved)
    yield around.worker()
    yield around.runtime()
    yield around.gateway(found.folder, saved)
    yield around.isolation(found.folder)
    yield from around.shadows(found.folder)
    yield around.agent(found.folder)
    yield around.broker(found.broker.url)
    yield from around.server(found.server.url, known)
    yield from certificate.certificates(found.broker.url, found.server.url)


def _lines(one: Finding) -> list[str]:
    line = f"{one.state:<5} {one.check:<{_WIDTH}} {one.said}"
    return [line, f"{'':<{_WIDTH + 6}} do: {one.do}"] if one.do else [line]
