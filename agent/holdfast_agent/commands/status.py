"""`holdfast-agent status`: what the device last saved, whether its agent is there, and what its gateway answers with now."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from holdfast_agent.commands import gateway_says, on_device
from holdfast_agent.commands.gateway_says import Gateway
from holdfast_agent.commands.told import Told
from holdfast_agent.core.record import PipelineRecord, Record
from holdfast_agent.edge import configuration, local_control
from holdfast_shared.assign import Target
from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT

SLOTS: Final = ("current", "previous", "candidate")
_DIGEST_SHOWN: Final = 19  # `sha256:` and twelve digits


def run(config: Path) -> Told:
    """Read the device's saved record, agent up or not. Raises Damaged or Malformed when it cannot be read."""
    found = configuration.load(config)
    on_device.become_owner(found.folder.root)
    saved = on_device.saved_record(found.folder)
    gateway = gateway_says.now(found.folder)
    answer = {
        **_answer(found.device.id, saved),
        "agent": local_control.listens(found.folder.agent_socket),
        "gateway": gateway.answer(),
    }
    return Told(answer, _lines(answer, gateway, known=saved is not None))


def _lines(answer: dict[str, Any], gateway: Gateway, *, known: bool) -> list[str]:
    agent = "the agent runs" if answer["agent"] else "no agent runs"
    lines = [f"device {answer['device']}: {agent}" + ("" if known else ", and none ever did")]
    for name, one in answer["pipelines"].items():
        state = f"{one['state']} of {one['requests']}" if one["requests"] else one["state"]
        lines.append(f"  {name}: {state}, serves {one['serving'] or 'nothing'}")
        slots = ", ".join(f"{slot} {one[slot] or '-'}{_place(one, slot)}" for slot in SLOTS)
        lines.append(f"    {slots}")
        lines += [f"    condemned here: {bad['release']} ({bad['code']})" for bad in one["condemned_here"]]
    return [*lines, *gateway.lines()]


def _place(one: dict[str, Any], slot: str) -> str:
    environment = one["environments"].get(slot, SYSTEM_ENVIRONMENT)
    return "" if environment == SYSTEM_ENVIRONMENT else f" in {environment[:_DIGEST_SHOWN]}"


def _answer(device: str, saved: Record | None) -> dict[str, Any]:
    pipelines = saved.pipelines if saved is not None else {}
    documents = saved.documents if saved is not None else ()
    return {
        "device": device,
        "pipelines": {name: _pipeline(one) for name, one in sorted(pipelines.items())},
        "accepted": [
            {"scope": one.scope, "pipeline": one.pipeline, "epoch": one.epoch, "seq": one.seq} for one in documents
        ],
    }


def _pipeline(one: PipelineRecord) -> dict[str, Any]:
    def version(slot: Target | None) -> str | None:
        return slot.release.version if slot is not None else None

    return {
        "state": one.state.value,
        "serving": version(one.serving),
        "requests": one.requests.in_words if one.requests is not None else None,
        "current": version(one.current),
        "previous": version(one.previous),
        "candidate": version(one.candidate),
        "environments": {slot: held.environment for slot in SLOTS if (held := getattr(one, slot)) is not None},
        "single": one.single,
        "unproven": one.unproven,
        "condemned_here": [{"release": bad.target.release.version, "code": bad.code} for bad in one.condemned_here],
    }
