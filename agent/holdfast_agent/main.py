"""`holdfast-agent`: keeps one device in step. `run` is the service; the others are for whoever stands before the device."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from holdfast_agent.commands.told import Told
from holdfast_agent.core.device import DETAIL_LENGTH_MAX
from holdfast_shared import __version__
from holdfast_shared.errors import HoldfastError

EXIT_REFUSED: Final = 2
EXIT_FAILED: Final = 1
_DESCRIPTION: Final = """\
Keeps this device's models in step with what its fleet assigns: follows signed assignments,
fetches and verifies releases, decides fallbacks, reports. A gateway (holdfast-gateway run,
with the same file) serves them, and goes on serving while the agent is stopped.

First time: write the configuration after deploy/agent.toml, provision the device's key,
membership and authorities.json, look whether all is well, then start both:

  holdfast-agent doctor --config /etc/holdfast/agent.toml
  holdfast-agent run --config /etc/holdfast/agent.toml
  holdfast-gateway run --config /etc/holdfast/agent.toml
"""
_ROLLBACK: Final = """\
Leave the release that serves for the one before it, at once and without any network.
The release that is left is condemned on this device: no assignment brings it back but a
retry with a higher attempt. It is reported when the broker is reached. With no good
release to turn to nothing is done, and what serves goes on serving.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit codes: 0 done or stopped, 1 something is not well (`run`: start it again), 2 refused (it must be put right)."""
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
    actions = parser.add_subparsers(required=True, metavar="run | status | verify | doctor | rollback")
    running = actions.add_parser("run", help="run until SIGTERM", description="Run the agent until SIGTERM or SIGINT.")
    running.set_defaults(act=_run)
    status = actions.add_parser(
        "status",
        help="what this device has and serves",
        description="Read the device's saved record, agent up or not, and ask its gateway what it answers with.",
    )
    status.set_defaults(act=_status)
    verify = actions.add_parser(
        "verify",
        help="read and hash everything that is in a slot",
        description="Verify every byte that every slot names. Exit code 1 when something is damaged.",
    )
    verify.set_defaults(act=_verify)
    doctor = actions.add_parser(
        "doctor",
        help="what ails this device, and what to do",
        description="Look at everything a device needs. Exit code 1 when a line says fail.",
    )
    doctor.set_defaults(act=_doctor)
    rollback = actions.add_parser(
        "rollback",
        help="leave what serves for the release before it",
        description=_ROLLBACK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rollback.add_argument("pipeline", nargs="?", metavar="PIPELINE", help="which; not needed when there is only one")
    rollback.add_argument("--reason", type=_reason, default="", help="why, for the report and the audit log")
    rollback.set_defaults(act=_rollback)
    for action in (running, status, verify, doctor, rollback):
        action.add_argument("--config", type=Path, required=True, metavar="FILE", help="the device's agent.toml")
    for action in (status, verify, doctor, rollback):
        action.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


# Imported where they are needed: `status` needs no broker, `run` none of the others.


def _run(asked: argparse.Namespace) -> None:
    from holdfast_agent.edge import assembly  # noqa: PLC0415 - `status` needs no broker and no database

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    assembly.run(asked.config)


def _status(asked: argparse.Namespace) -> None:
    from holdfast_agent.commands import status  # noqa: PLC0415 - `run` needs none of the commands

    _tell(asked, status.run(asked.config))


def _verify(asked: argparse.Namespace) -> None:
    from holdfast_agent.commands import verify  # noqa: PLC0415 - as above

    _tell(asked, verify.run(asked.config))


def _doctor(asked: argparse.Namespace) -> None:
    from holdfast_agent.commands import doctor  # noqa: PLC0415 - as above

    _tell(asked, doctor.run(asked.config))


def _rollback(asked: argparse.Namespace) -> None:
    from holdfast_agent.commands import rollback  # noqa: PLC0415 - as above

    _tell(asked, rollback.run(asked.config, asked.pipeline, asked.reason))


def _tell(asked: argparse.Namespace, told: Told) -> None:
    print(json.dumps(told.answer) if asked.json else "\n".join(told.lines))
    if told.failed:
        sys.exit(EXIT_FAILED)


def _reason(text: str) -> str:
    if len(text) > DETAIL_LENGTH_MAX or not text.isprintable():
        raise argparse.ArgumentTypeError(f"one printable line of at most {DETAIL_LENGTH_MAX} characters")
    return text
