"""`holdfast-agent`: keeps one device in step. `run` is the service, `status` reads what the device last saved."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from holdfast_agent.core import record
from holdfast_agent.core.record import PipelineRecord, Record
from holdfast_agent.edge import configuration
from holdfast_shared import __version__
from holdfast_shared.assign import Target
from holdfast_shared.durable import DoubledFile
from holdfast_shared.errors import HoldfastError

EXIT_REFUSED: Final = 2
EXIT_FAILED: Final = 1
_DESCRIPTION: Final = """\
Keeps this device's models in step with what its fleet assigns: follows signed assignments,
fetches and verifies releases, decides fallbacks, reports. A gateway (holdfast-gateway run,
with the same file) serves them, and goes on serving while the agent is stopped.

First time: write the configuration after deploy/agent.toml, provision the device's key,
membership and authorities.json, then start both:

  holdfast-agent run --config /etc/holdfast/agent.toml
  holdfast-gateway run --config /etc/holdfast/agent.toml
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit codes: 0 stopped, 1 could not go on (start it again), 2 refused to start (something must be put right)."""
    asked = _parser().parse_args(arguments)
    try:
        asked.act(asked)
    except HoldfastError as refusal:
        print(f"holdfast-agent: {refusal}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    except OSError as error:
        print(f"holdfast-agent: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="holdfast-agent", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    actions = parser.add_subparsers(required=True, metavar="run | status")
    running = actions.add_parser("run", help="run until SIGTERM", description="Run the agent until SIGTERM or SIGINT.")
    running.add_argument("--config", type=Path, required=True, metavar="FILE", help="the device's agent.toml")
    running.set_defaults(act=_run)
    status = actions.add_parser(
        "status", help="what this device has and serves", description="Read the device's saved record, agent up or not."
    )
    status.add_argument("--config", type=Path, required=True, metavar="FILE", help="the device's agent.toml")
    status.add_argument("--json", action="store_true", help="one JSON object instead of text")
    status.set_defaults(act=_status)
    return parser


def _run(asked: argparse.Namespace) -> None:
    from holdfast_agent.edge import assembly  # noqa: PLC0415 - `status` needs no broker and no database

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    assembly.run(asked.config)


def _status(asked: argparse.Namespace) -> None:
    found = configuration.load(asked.config)
    raw = DoubledFile(found.folder.record).read()
    saved = record.decode(raw[1]) if raw is not None else None
    answer = _answer(found.device.id, saved)
    if asked.json:
        print(json.dumps(answer))
        return
    print(f"device {answer['device']}" + ("" if saved is not None else ": no agent ever ran here"))
    for name, one in answer["pipelines"].items():
        print(f"  {name}: {one['state']}, serves {one['serving'] or 'nothing'}")
        print(
            f"    current {one['current'] or '-'}, previous {one['previous'] or '-'}, candidate {one['candidate'] or '-'}"
        )
        for bad in one["condemned_here"]:
            print(f"    condemned here: {bad['release']} ({bad['code']})")


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
        "current": version(one.current),
        "previous": version(one.previous),
        "candidate": version(one.candidate),
        "single": one.single,
        "unproven": one.unproven,
        "condemned_here": [{"release": bad.target.release.version, "code": bad.code} for bad in one.condemned_here],
    }
