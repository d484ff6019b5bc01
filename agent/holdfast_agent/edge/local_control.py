"""What somebody on the device may ask of the running agent, over a Unix socket: one JSON line there, one back, and that is all.

A socket, not a file that is watched: its answer says that the record is saved, or why nothing was done, and the kernel holds
whoever may not ask away from it (its mode is 0600: the agent's own user, and root).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from holdfast_agent.core.device import DETAIL_LENGTH_MAX
from holdfast_shared import durable
from holdfast_shared.assign import Target
from holdfast_shared.errors import Conflict, Missing
from holdfast_shared.identifiers import NameField

SOCKET_MODE: Final = 0o600
LINE_BYTES_MAX: Final = 16 * 1024
# For a line that is a few hundred bytes, from a process on this device.
ASKING_S: Final = 2.0
# As long as the loop may try to save the record on a disk that refuses, and some.
ANSWER_S: Final = 45.0
STOP_S: Final = 2.0
# Who asks waits its turn; one at a time is served.
_BACKLOG: Final = 4

log: Final = logging.getLogger(__name__)


class Rollback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leave `target`, which was seen to serve, and condemn it here."""

    pipeline: NameField
    target: Target
    reason: Annotated[str, msgspec.Meta(max_length=DETAIL_LENGTH_MAX)] = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`serves` is the version that the record now names; `refused` is why nothing was done."""

    serves: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRequested:
    """`answer` is called once, by the loop, when the record is saved or it is clear that nothing is done."""

    request: Rollback
    answer: Callable[[Answer], None]


class LocalControl:
    """A thread that listens. `emit` is called on it; whoever gets the request answers it."""

    def __init__(self, path: Path, emit: Callable[[RollbackRequested], None]) -> None:
        self._path, self._emit = path, emit
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. Only the holder of the record's lock may call it: what is left of an earlier socket goes."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            durable.make_folder(self._path.parent, 0o750)
            self._path.unlink(missing_ok=True)
            before = os.umask(0o777 & ~SOCKET_MODE)
            try:
                listening.bind(str(self._path))
            finally:
                os.umask(before)
            listening.listen(_BACKLOG)
        except OSError as error:  # the device is kept in step all the same
            log.warning("nobody on this device can ask the agent anything: %s: %s", self._path, error)
            listening.close()
            return
        self._listening = listening
        self._thread = threading.Thread(target=self._run, args=(listening,), name="local-control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._listening is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(STOP_S)
        self._listening.close()
        self._path.unlink(missing_ok=True)

    def _run(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # stopped
            with connection:
                try:
                    self._serve(connection)
                except OSError as error:
                    log.warning("somebody on this device asked and went away: %s", error)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(ASKING_S)
        line = _line(connection)
        if not line:
            return  # only looked whether we listen
        try:
            request = msgspec.json.decode(line, type=Rollback)
        except msgspec.DecodeError as error:
            connection.sendall(_encoded(Answer(refused=f"this agent does not understand what it is asked: {error}")))
            return
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._emit(RollbackRequested(request=request, answer=answers.put))
        try:
            answer = answers.get(timeout=ANSWER_S)
        except queue.Empty:
            log.warning("the loop did not answer within %g s", ANSWER_S)
            return
        connection.sendall(_encoded(answer))


def listens(path: Path) -> bool:
    """Whether an agent listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ASKING_S)
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True


def ask(path: Path, request: Rollback) -> Answer:
    """Ask the agent that listens there. Raises Missing when none does, Conflict when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S + ASKING_S)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise Missing(
                f"an agent holds the record, but none answers at {path}: {error.strerror}",
                next_step="run it as root or the agent's user; if it still fails, restart the agent",
            ) from error
        try:
            connection.sendall(_encoded(request))
            return msgspec.json.decode(_line(connection), type=Answer)
        except (OSError, msgspec.DecodeError) as error:
            raise Conflict(
                f"the agent was asked and did not answer: {error}", next_step="see holdfast-agent status, then its log"
            ) from error


def _encoded(message: Rollback | Answer) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def _line(connection: socket.socket) -> bytes:
    """One line, or what came before the other end closed or said too much."""
    read = bytearray()
    while not read.endswith(b"\n") and len(read) <= LINE_BYTES_MAX:
        piece = connection.recv(4096)
        if not piece:
            break
        read += piece
    return bytes(read[:LINE_BYTES_MAX])
