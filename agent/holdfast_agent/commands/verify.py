"""`holdfast-agent verify`: every byte that every slot names, read again and hashed. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from holdfast_agent.commands import on_device
from holdfast_agent.commands.told import Told
from holdfast_agent.core.record import Record
from holdfast_agent.edge import blobs, configuration
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.assign import Target
from holdfast_shared.errors import Missing

_DO: Final = (
    "the agent fetches damaged bytes again when it next reads its slots ([agent] verify_s); for now: systemctl restart"
    " holdfast-gateway; if they rot again, replace the disk"
)


def run(config: Path) -> Told:
    """Verify all slots of all pipelines; failed when one does not verify. Raises Missing when no agent ever ran here."""
    found = configuration.load(config)
    on_device.become_owner(found.folder.root)
    saved = on_device.saved_record(found.folder)
    if saved is None:
        raise Missing(f"{found.folder.root} has no record: no agent ever ran here", next_step="holdfast-agent doctor")
    slots = [_verified(found.folder, *slot) for slot in _slots(saved)]
    if any(_is_bad(one) for one in slots):
        slots = _still_named(found.folder, slots)
    lines = [_line(one) for one in slots] or ["no slot holds a release yet"]
    failed = any(_is_bad(one) for one in slots)
    return Told({"verified": not failed, "slots": slots}, [*lines, f"do: {_DO}"] if failed else lines, failed)


def _slots(saved: Record) -> Iterator[tuple[str, str, Target]]:
    """The candidate only once it is all there: while it is fetched it cannot verify."""
    for name, pipeline in sorted(saved.pipelines.items()):
        serving = pipeline.serving
        for slot, target in (
            ("current", pipeline.current),
            ("previous", pipeline.previous),
            ("candidate", serving if serving == pipeline.candidate else None),
        ):
            if target is not None:
                yield name, slot, target


def _verified(folder: StateFolder, pipeline: str, slot: str, target: Target) -> dict[str, Any]:
    damaged: list[str] = []
    unreadable = ""
    try:
        damaged = [bad for digest in sorted(target.digests) for bad in blobs.damaged(folder, digest)]
    except OSError as error:
        unreadable = error.strerror or str(error)
    return {
        "pipeline": pipeline,
        "slot": slot,
        "version": target.release.version,
        "digest": target.release.digest,
        "damaged": damaged,
        "unreadable": unreadable,
    }


def _still_named(folder: StateFolder, slots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what the agent has given up, and deleted, while we read."""
    saved = on_device.saved_record(folder)
    named = {target.release.digest for _, _, target in _slots(saved)} if saved is not None else set()
    return [one for one in slots if not _is_bad(one) or one["digest"] in named]


def _is_bad(one: dict[str, Any]) -> bool:
    return bool(one["damaged"] or one["unreadable"])


def _line(one: dict[str, Any]) -> str:
    what = f"{one['pipeline']} {one['slot']} {one['version']}"
    if one["unreadable"]:
        return f"fail  {what}: cannot be read: {one['unreadable']}"
    return f"ok    {what}" if not one["damaged"] else f"fail  {what}: damaged or missing: {', '.join(one['damaged'])}"
