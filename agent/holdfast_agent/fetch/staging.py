"""A whole target, from its digest to a release that is all there.

Verified manifests wait under `partial/` while their blobs come, and get their names last, models before the release: killed at
any moment, nothing that is named by a manifest on disk is missing. What is there and verifies is never fetched again, so a
complete target needs no network. By which way a blob comes is `transfers`' choice.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from holdfast_agent.edge import blobs, environments
from holdfast_agent.edge.blobs import blob_verifies, exclusive
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.fetch import building, fitness, manifests, transfers
from holdfast_agent.fetch.line import outside_window
from holdfast_agent.fetch.manifests import Manifests, Order, Source
from holdfast_agent.fetch.outcome import Failed
from holdfast_agent.fetch.patience import Deadline
from holdfast_agent.fetch.transfers import Way
from holdfast_shared import durable, variants
from holdfast_shared.failure_codes import FailureCode
from holdfast_shared.variants import Machine
from holdfast_shared.wire.environment import unpacked_bytes, wheels_of
from holdfast_shared.wire.release import blobs_of

# Left free for the record, the spool and the rest of the device: a full disk must not be our doing.
RESERVE_BYTES: Final = 32 * 1024**2


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def stage(
    source: Source,
    order: Order,
    deadline: Deadline,
    *,
    machine: Machine,
    free: Callable[[Path], int] = free_bytes,
) -> None:
    """Have all of the target on this disk. Raises Failed and other HoldfastErrors, or OSError. May be repeated."""
    folder = source.folder
    with exclusive(folder, wait_s=deadline.left_s()) as held:
        if not held:
            raise Failed(FailureCode.FETCH_TOO_SLOW, "another fetch was at work all the while")
        for made in (folder.blobs, folder.manifests, folder.partial):
            durable.make_folder(made)
            durable.remove_leftovers(made)
        found = manifests.obtain(source, order, deadline)
        fitness.check_supported(found.release, found.models, order.environment)
        chosen = fitness.choose(found.models, variants.in_environment(machine, found.environment))
        interpreter = building.interpreter_for(found.environment) if found.environment is not None else None
        missing = _missing(folder, found, chosen)
        if missing and source.from_disk:
            raise outside_window(f"blob {next(iter(missing))}")
        unbuilt = found.environment is not None and environments.damaged(folder.environment(order.environment)) != ""
        if missing or unbuilt:
            built = unpacked_bytes(found.environment) if unbuilt and found.environment is not None else 0
            by = _with_room(folder, transfers.ways(source.line, folder, missing, deadline), free, built)
            _keep_for_later(folder, found)
            for way in by:
                transfers.fetch(source.line, folder, way, deadline)
        if unbuilt and found.environment is not None and interpreter is not None:
            building.build(folder, order.environment, found.environment, interpreter, deadline)
        elif found.environment is not None:
            # Whoever built it may have been killed before its name was durable.
            durable.sync_folder(folder.environments)
        blobs.write_choice(folder, (order.digest, order.environment), found.models, chosen)
        _name_manifests(folder, found)


def _missing(folder: StateFolder, found: Manifests, chosen: tuple[str, ...]) -> dict[str, int]:
    wanted = blobs_of(found.release, found.models, variants=chosen)
    if found.environment is not None:
        wanted |= wheels_of(found.environment)
    return {digest: size for digest, size in wanted.items() if not blob_verifies(folder, digest, size)}


def _with_room(folder: StateFolder, chosen: Sequence[Way], free: Callable[[Path], int], built: int) -> Sequence[Way]:
    """These ways, or the plain ones where there is no room for a blob beside what it is made of. Raises OSError ENOSPC.

    `built`: the bytes of an environment that is made of them.
    """
    found = free(folder.root) - RESERVE_BYTES - built
    if transfers.room_needed(chosen) <= found:
        return chosen
    plain = [way.as_it_is() for way in chosen]
    needed = transfers.room_needed(plain)
    if needed > found:
        raise OSError(
            errno.ENOSPC,
            f"{needed + built + RESERVE_BYTES} bytes are needed, of them {RESERVE_BYTES} in reserve; "
            f"{found + built + RESERVE_BYTES} are free",
        )
    return plain


def _keep_for_later(folder: StateFolder, found: Manifests) -> None:
    """So that garbage collection knows what these blobs are for, and the next try needs no manifests."""
    for digest, envelope in found.envelopes.items():
        durable.write_file(folder.partial_manifest(digest), envelope)


def _name_manifests(folder: StateFolder, found: Manifests) -> None:
    durable.sync_folder(folder.blobs)  # a fetch before this one may have been killed between a name and its sync
    for digest, envelope in found.envelopes.items():
        if _read(folder.manifest(digest)) != envelope:
            durable.write_file(folder.partial_manifest(digest), envelope)
            durable.rename_into_place(folder.partial_manifest(digest), folder.manifest(digest))
    durable.sync_folder(folder.manifests)
    for digest in found.envelopes:
        durable.remove(folder.partial_manifest(digest))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
