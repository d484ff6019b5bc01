"""`holdfast-agent rollback`: leave what serves for the release before it, here and now, without any network.

The agent is the only writer of the record, so exactly one of two things happens, by who holds the record's lock:
- an agent runs: it is asked over its Unix socket, and does it;
- none runs: this process takes the lock and is the agent until the gateway confirms (`edge/brief_agent.py`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from holdfast_agent.commands import gateway_says, on_device
from holdfast_agent.commands.told import Told
from holdfast_agent.core.record import Record
from holdfast_agent.edge import brief_agent, configuration, local_control
from holdfast_agent.edge.configuration import Configuration
from holdfast_agent.edge.local_control import Answer, Rollback
from holdfast_agent.edge.record_file import RecordFile
from holdfast_shared.assign import Target
from holdfast_shared.errors import Conflict, Malformed, Missing

# A loaded slot takes over in milliseconds; one that has to be loaded first within its load deadline.
CONFIRM_S: Final = 15.0
# An agent that is just starting or ending has the lock, and does not listen.
MEETING_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.1


def run(config: Path, pipeline: str | None, reason: str) -> Told:
    """Roll back `pipeline`, or the only one. Raises Conflict, with nothing done, when there is nothing good to turn to."""
    found = configuration.load(config)
    on_device.become_owner(found.folder.root)
    name, bad = _what_serves(found, pipeline)
    answer = _done(found, Rollback(pipeline=name, target=bad, reason=reason))
    if answer.refused:
        raise Conflict(
            f"nothing is done: {answer.refused}",
            field=name,
            next_step="what serves goes on serving; have another release assigned: holdfast rollback, on the server",
        )
    confirmed = gateway_says.until_it_serves(found.folder, name, answer.serves, within_s=CONFIRM_S)
    said = {"pipeline": name, "left": bad.release.version, "serves": answer.serves, "confirmed": confirmed}
    line = f"{name}: {bad.release.version} is left and condemned on this device; {answer.serves} serves"
    if not confirmed:
        line += " as soon as the gateway has it (see holdfast-agent status)"
    lifted = "It holds until a retry with a higher attempt is assigned, and is reported when the broker is reached."
    return Told(said, [line, lifted])


def _done(found: Configuration, wanted: Rollback) -> Answer:
    deadline = time.monotonic() + MEETING_S
    while True:
        try:
            records = RecordFile(found.folder)
        except Conflict:  # an agent holds the lock
            try:
                return local_control.ask(found.folder.agent_socket, wanted)
            except Missing:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_LOOK_EVERY_S)  # it starts or ends just now, and one of the two is soon true
        else:
            with records:
                return brief_agent.roll_back(found, records, wanted)


def _what_serves(found: Configuration, pipeline: str | None) -> tuple[str, Target]:
    """What a person who looks now sees serving: the agent refuses if something else serves by the time it is asked."""
    saved = on_device.saved_record(found.folder)
    name = pipeline if pipeline is not None else _only(saved)
    serving = saved.pipeline(name).serving if saved is not None else None
    if serving is None:
        raise Missing(f"{name} serves nothing on this device", field="pipeline", next_step="holdfast-agent status")
    return name, serving


def _only(saved: Record | None) -> str:
    names = sorted(saved.pipelines) if saved is not None else []
    if len(names) != 1:
        raise Malformed(
            f"this device has {len(names)} pipelines" + (f": {', '.join(names)}" if names else ""),
            field="pipeline",
            next_step="name one: holdfast-agent rollback --config FILE PIPELINE",
        )
    return names[0]
