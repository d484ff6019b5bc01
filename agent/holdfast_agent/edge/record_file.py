"""The record on disk, and the lock that makes this process its only writer."""

from __future__ import annotations

import logging
import os
import secrets
from types import TracebackType
from typing import Final

from holdfast_agent.core import record
from holdfast_agent.core.record import Record
from holdfast_agent.core.step import first_record
from holdfast_agent.edge.layout import StateFolder
from holdfast_agent.edge.locks import lock_within
from holdfast_shared import durable
from holdfast_shared.durable import DoubledFile
from holdfast_shared.errors import Conflict

log: Final = logging.getLogger(__name__)


class RecordFile:
    """Holds the state directory's lock while it is open. Raises Conflict when another agent runs on it, and still does after
    `wait_s`; OSError where nothing can be opened or locked."""

    def __init__(self, folder: StateFolder, *, wait_s: float = 0.0) -> None:
        durable.make_folder(folder.root, 0o750)
        self._lock = os.open(folder.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not lock_within(self._lock, wait_s):
                raise Conflict(
                    f"another agent runs on {folder.root}",
                    field="state",
                    next_step="stop it first, or give this device a state directory of its own",
                )
        except BaseException:
            os.close(self._lock)
            raise
        durable.remove_leftovers(folder.root)
        self._file = DoubledFile(folder.record, on_damage=lambda what: log.error("the record: %s", what))

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._lock)

    def load(self) -> Record:
        """The last saved record; a device that never ran gets its first. Raises Damaged or Malformed: then nothing starts.

        Beginning anew instead would forget what was condemned, and which documents are old.
        """
        found = self._file.read()
        if found is not None:
            return record.decode(found[1])
        first = first_record(secrets.token_hex(8))
        self.save(first)
        return first

    def save(self, saved: Record) -> None:
        """On disk when this returns. Raises OSError; what was there before is then still there."""
        self._file.write(record.encode(saved))
