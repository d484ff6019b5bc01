"""`holdfast`: the operator's command. It uses only the server's REST API, and a broker where `--mqtt` says so."""

from __future__ import annotations

import json
import sys

import click

from holdfast_cli import decision, device, environment, key, output, publish, reference, release, rollback, rollout
from holdfast_cli.failures import EXIT_MISTAKE, exit_code
from holdfast_cli.session import Session, root_options
from holdfast_shared import __version__
from holdfast_shared.errors import HoldfastError

_INTERRUPTED = 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 the server refused or did not answer; 2 the command was wrong; 3 a watched rollout halted.",
)
@click.version_option(__version__, prog_name="holdfast")
@root_options
def holdfast() -> None:
    """Version, ship, watch and take back machine-learning models on fleets of small devices.

    \b
    The usual way of a release:
      holdfast key new publisher.pem                      make a signing key (its public half goes into authorities.json)
      holdfast publish FOLDER --key publisher.pem         hash, sign and upload what FOLDER/release.toml describes
      holdfast rollout plan digits 1.1.0 --key anna.pem   cut the fleet into waves; nothing moves yet
      holdfast rollout start ro-1 --key anna.pem          release the first wave
      holdfast rollout watch ro-1                         watch waves and gates until it has ended
      holdfast rollback digits 1.1.0 --segment region=eu-west --reason "…" --key anna.pem
      holdfast approve rb-1 --key ben.pem                 a second person agrees, and it is taken back
    """


for _command in (
    key.key,
    publish.publish,
    reference.reference,
    release.release,
    environment.environment,
    device.device,
    device.fleet,
    rollout.rollout,
    rollback.rollback,
    rollback.approve,
    rollback.rollbacks,
    decision.decisions,
):
    holdfast.add_command(_command)


def main() -> None:
    """Run the command; an error is one clear line on standard error, and an exit code by who must act."""
    session = Session()
    try:
        sys.exit(holdfast.main(obj=session, standalone_mode=False) or 0)
    except HoldfastError as error:
        _say(session, code=error.code, field=error.field, message=error.message, next_step=error.next_step)
        sys.exit(exit_code(error))
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "holdfast"
        _say(session, code="usage", field="", message=error.format_message(), next_step=f"see: {command} --help")
        sys.exit(EXIT_MISTAKE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)


def _say(session: Session, *, code: str, field: str, message: str, next_step: str) -> None:
    if session.as_json:
        body = {"error": {"code": code, "field": field, "message": message, "next": next_step}}
        click.echo(json.dumps(body, ensure_ascii=False), err=True)
        return
    where = f"{field}: " if field else ""
    then = f" Next: {next_step}" if next_step else ""
    click.echo(output.plain(f"holdfast: {where}{message}{then}"), err=True)


if __name__ == "__main__":
    main()
