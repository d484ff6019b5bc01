"""Commands that come by MQTT: one after another through the door, each with one answer, if it says where to.

Answers go only under `holdfast/<fleet>/answer/`: whoever may publish commands must not make us publish elsewhere.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from holdfast_server import command_door
from holdfast_server.ingest.tally import Tally
from holdfast_server.refusals import DATABASE_AWAY, Limited
from holdfast_server.rollouts.context import Context
from holdfast_server.store.database import UNAVAILABLE
from holdfast_shared import strict_json
from holdfast_shared.errors import HoldfastError

# Operators are people: more at once is somebody's loop, which is told so.
WAITING_MAX: Final = 64
LOOK_S: Final = 0.2
TOPIC_BYTES_MAX: Final = 256
# What `holdfast` reads of an answer. A rollback of a larger fleet is answered without its list of devices.
ANSWER_BYTES_MAX: Final = 1024 * 1024
_LISTS: Final = frozenset({"devices", "reached", "returned"})

log: Final = logging.getLogger(__name__)


class Asked(NamedTuple):
    """`reply` and `done` are called once each, from any thread; None: there is nobody to tell."""

    verb: str
    envelope: bytes
    reply: Callable[[bytes], None] | None
    done: Callable[[], None] | None


class CommandDesk:
    """`offer` from any thread; `run` on one."""

    def __init__(self, context: Context, tally: Tally | None = None) -> None:
        self._context = context
        self._tally = tally if tally is not None else Tally()
        self._waiting: queue.Queue[Asked] = queue.Queue(maxsize=WAITING_MAX)

    def offer(self, asked: Asked) -> None:
        """Never waits: one too many is refused at once."""
        try:
            self._waiting.put_nowait(asked)
        except queue.Full:
            refusal = Limited(f"{WAITING_MAX} commands wait already", next_step="send it again in a minute")
            _finish(asked, failure(refusal))

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; those that still wait then are not acknowledged, and come again."""
        while not stop.is_set():
            try:
                asked = self._waiting.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            try:
                _finish(asked, self._carry_out(asked))
            except Exception:  # the next one is somebody else's
                log.exception("a command could not be answered")

    def _carry_out(self, asked: Asked) -> bytes:
        try:
            return success(command_door.accept(self._context, asked.envelope, verb=asked.verb))
        except HoldfastError as refusal:
            self._tally.dropped(f"command-{refusal.code}", source=asked.verb, why=str(refusal))
            return failure(refusal)
        except UNAVAILABLE as error:
            log.warning("a command could not be carried out, the database is away: %.300s", error)
            return failure(DATABASE_AWAY)
        except Exception:  # a bug of ours: whoever asked is told that much
            log.exception("a command failed")
            return failure(
                HoldfastError(
                    "the server failed; the command may not have been carried out",
                    code="internal",
                    next_step="look with `holdfast rollbacks`, and read the server's log",
                )
            )


def answer_topic(fleet: str, topic: str | None) -> str | None:
    """Where to answer: the topic that was asked for, if it is one of ours for answers."""
    prefix = f"holdfast/{fleet}/answer/"
    if topic is None or not topic.startswith(prefix) or topic == prefix or len(topic) > TOPIC_BYTES_MAX:
        return None
    return None if any(sign in topic for sign in "+#\0") else topic


def success(done: dict[str, Any]) -> bytes:
    answer = strict_json.encode({**done, "ok": True})
    if len(answer) > ANSWER_BYTES_MAX:
        answer = strict_json.encode({**{key: value for key, value in done.items() if key not in _LISTS}, "ok": True})
    return answer


def failure(refusal: HoldfastError) -> bytes:
    return strict_json.encode(
        {
            "error": {
                "code": refusal.code,
                "field": refusal.field,
                "message": refusal.message,
                "next": refusal.next_step,
            }
        }
    )


def _finish(asked: Asked, answer: bytes) -> None:
    try:
        if asked.reply is not None:
            asked.reply(answer)
    finally:
        if asked.done is not None:
            asked.done()
