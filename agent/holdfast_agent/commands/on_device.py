"""What every command on the device needs: the record as it lies there, and to be who owns it."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast_agent.core import record
from holdfast_agent.core.record import Record
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.durable import DoubledFile


def become_owner(folder: Path) -> None:
    """Go on as the user whose folder it is, if we are root: a file of root's would be in the agent's way for ever after."""
    if os.geteuid() != 0:
        return
    try:
        owner = folder.stat()
    except OSError:
        return  # not there yet, or not to be looked at: whoever needs it says so
    if owner.st_uid == 0:
        return
    os.setgroups([owner.st_gid])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def saved_record(folder: StateFolder) -> Record | None:
    """The newest saved record; None when no agent ever ran here. Raises Damaged or Malformed."""
    raw = DoubledFile(folder.record).read()
    return record.decode(raw[1]) if raw is not None else None
