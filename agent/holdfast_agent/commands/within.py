"""What `doctor` looks at on the device's own disk: who it is, where it keeps what it has, and whether its clock can be true."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime
from typing import Final

from holdfast_agent.commands import on_device
from holdfast_agent.commands.told import Finding
from holdfast_agent.core.record import PipelineRecord, Record, StoredDocument
from holdfast_agent.edge import blobs, identity
from holdfast_agent.edge.configuration import Configuration
from holdfast_agent.edge.identity import Identity
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared import durable, signing, strict_json
from holdfast_shared.durable import DoubledFile
from holdfast_shared.errors import HoldfastError
from holdfast_shared.wire.assignment import ENVELOPE_BYTES_MAX, TYPE, Assignment

# What a fetch leaves free (fetch/staging.py), and what a record, a spool and a log need besides.
RESERVE_BYTES: Final = 32 * 1024**2
INODES_MIN: Final = 1000
# What serves, the one before it, and one on its way to take over.
RELEASES_PLANNED: Final = 3
# Signers' clocks are not ours to the second.
CLOCK_AHEAD_US: Final = 3600 * 1_000_000
_PROBE: Final = "doctor-probe"
_MIB: Final = 1024**2


def identity_of(found: Configuration) -> tuple[Identity | None, Finding]:
    """Authorities, membership and key, and whether they fit together."""
    try:
        known = identity.load(found)
    except HoldfastError as error:
        where = f"{error.field}: " if error.field else ""
        return None, Finding(check="identity", state="fail", said=f"{where}{error.message}", do=error.next_step)
    member = known.membership
    said = f"{member.device} of {member.fleet} in {member.region}, membership {member.counter}, its own key"
    return known, Finding(check="identity", state="ok", said=said)


def state_folder(folder: StateFolder) -> Finding:
    """Whether it can be written, durably: a file is written, synced and deleted."""
    probe = folder.root / _PROBE
    try:
        durable.write_file(probe, b"holdfast", mode=0o600)
        durable.remove(probe)
    except FileNotFoundError:
        do = "start the agent, or make the folder and give it to the agent's user"
        return Finding(check="state", state="fail", said=f"{folder.root} is not there", do=do)
    except OSError as error:
        do = "mount it read-write, free some space, or give it to the agent's user: chown -R holdfast"
        return Finding(check="state", state="fail", said=f"{folder.root} cannot be written: {error.strerror}", do=do)
    return Finding(check="state", state="ok", said=f"{folder.root} can be written")


def record_of(folder: StateFolder) -> tuple[Record | None, Finding]:
    """Both halves of the record."""
    damage: list[str] = []
    try:
        DoubledFile(folder.record, damage.append).read()
        saved = on_device.saved_record(folder)
    except HoldfastError as error:
        return None, Finding(check="record", state="fail", said=error.message, do=error.next_step)
    if saved is None:
        do = "start the agent: systemctl start holdfast-agent"
        return None, Finding(check="record", state="warn", said="there is none yet: no agent ever ran here", do=do)
    if damage:
        do = "nothing now: the other half is good, and the next change mends it; if it comes again, replace the disk"
        return saved, Finding(check="record", state="warn", said="; ".join(damage), do=do)
    serving = [f"{name} {one.serving.release.version}" for name, one in sorted(saved.pipelines.items()) if one.serving]
    said = f"{', '.join(serving) or 'nothing'} serves; the agent started {saved.boots} time(s)"
    return saved, Finding(check="record", state="ok", said=said)


def disk(folder: StateFolder, saved: Record | None) -> Finding:
    """Room for three releases of each pipeline, of the largest size that it has here, beside the reserve: two and a candidate."""
    try:
        free = shutil.disk_usage(folder.root).free
        numbers = os.statvfs(folder.root)
    except OSError as error:
        do = "make the state folder"
        return Finding(check="disk", state="fail", said=f"{folder.root} cannot be looked at: {error.strerror}", do=do)
    pipelines = saved.pipelines.values() if saved is not None else ()
    wanted = RESERVE_BYTES + sum(_to_come_bytes(folder, pipeline) for pipeline in pipelines)
    said = f"{free // _MIB} MiB free of {wanted // _MIB} MiB that releases to come may need"
    do = "free some space: the device serves on, and cannot fetch what it is assigned"
    if free < RESERVE_BYTES:
        return Finding(check="disk", state="fail", said=said, do=do)
    if free < wanted:
        return Finding(check="disk", state="warn", said=said, do=do)
    if numbers.f_files and numbers.f_favail < INODES_MIN:  # some filesystems count none
        return Finding(check="disk", state="warn", said=f"{numbers.f_favail} files can still be made", do=do)
    return Finding(check="disk", state="ok", said=f"{free // _MIB} MiB free")


def clock(known: Identity | None, saved: Record | None) -> Finding:
    """Whether the time can be true: what was signed for this device was signed before now."""
    now = time.time_ns() // 1000
    documents = [one for stored in (saved.documents if saved is not None else ()) if (one := _document(stored))]
    signed = [one.issued_at for one in documents] + ([known.membership.issued_at] if known is not None else [])
    floor = max(signed, default=0)
    do = "set it: timedatectl set-ntp true. The device serves on and rolls back without a clock"
    if now + CLOCK_AHEAD_US < floor:
        said = f"it is {_day(now)}, and something was signed for this device at {_day(floor)}"
        return Finding(check="clock", state="fail", said=said, do=do)
    expired = [one.scope.key for one in documents if one.rules and one.not_after < now]
    if expired:
        said = f"it is {_day(now)}, and what is assigned by {', '.join(expired)} has expired"
        do = f"if the time is true, the server was not heard for long: see broker and server below. If not, {do}"
        return Finding(check="clock", state="warn", said=said, do=do)
    return Finding(check="clock", state="ok", said=f"it is {_day(now)}")


def _to_come_bytes(folder: StateFolder, pipeline: PipelineRecord) -> int:
    """What is not here yet of three releases as large as the largest that is."""
    sizes = [_size_bytes(folder, slot.release.digest) for slot in pipeline.held]
    return (RELEASES_PLANNED - len(sizes)) * max(sizes, default=0)


def _size_bytes(folder: StateFolder, digest: str) -> int:
    """Of a release, as its manifests say; nothing where they do not verify, which is another check's business."""
    release = blobs.release_of(folder, digest)
    models = blobs.models_of(folder, release) if release is not None else None
    if release is None or models is None:
        return 0
    return sum(blobs.needed_blobs(folder, digest, release, models).values())


def _document(stored: StoredDocument) -> Assignment | None:
    """It was verified when it was accepted; of a region that the device has left, only the order is kept."""
    try:
        payload = signing.unverified_payload(stored.envelope, TYPE, size_bytes_max=ENVELOPE_BYTES_MAX)
        return strict_json.decode(payload, Assignment, what="assignment", size_bytes_max=ENVELOPE_BYTES_MAX)
    except HoldfastError:
        return None


def _day(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
