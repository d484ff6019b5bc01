"""`holdfast-server`: one process with registry, scheduler, broker session, API and page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from holdfast_server import process
from holdfast_shared import __version__
from holdfast_shared.errors import HoldfastError

_MISTAKE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="holdfast-server")
def holdfast_server() -> None:
    """The server that keeps a fleet in step: what is published, who runs it, and what is taken back.

    \b
    To begin:
      holdfast key new director.pem            the server's own key; its public half goes into authorities.json
      holdfast-server run --data ./data --authorities authorities.json --director-key director.pem
      open http://127.0.0.1:8080               the page; `holdfast --help` for everything else
    """


@holdfast_server.command
@click.option(
    "--data", required=True, type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the database, the models' files and server.json. Made if it is missing.",
)  # fmt: skip
@click.option(
    "--authorities", required=True, type=click.Path(path_type=Path, dir_okay=False),
    help="authorities.json: whose key may say what.",
)  # fmt: skip
@click.option(
    "--director-key", required=True, type=click.Path(path_type=Path, dir_okay=False),
    help="The private key, PEM, that signs assignments; authorities.json must list it as a director.",
)  # fmt: skip
@click.option(
    "--listen", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT",
    help="Where API and page are served: loopback only. Port 0 takes a free one; see server.json.",
)  # fmt: skip
@click.option(
    "--mqtt", default="mqtt://127.0.0.1:1883", show_default=True, metavar="URL",
    help="The broker. It may come later, and go: devices also ask over HTTP.",
)  # fmt: skip
@click.option(
    "--database", metavar="URL", envvar="HOLDFAST_DATABASE",
    help="Such as postgresql+psycopg://user@host/name (or HOLDFAST_DATABASE). Default: server.db in the data folder.",
)  # fmt: skip
@click.option(
    "--shadow-first", metavar="SELECTOR",
    help="Where a release may serve only after a rollout had it shadow what serves, and finished: stage=production, or *.",
)  # fmt: skip
def run(
    data: Path,
    authorities: Path,
    director_key: Path,
    listen: str,
    mqtt: str,
    database: str | None,
    shadow_first: str | None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Once it listens, DATA/server.json says where: {"http": "http://127.0.0.1:PORT", "pid": N}.
    """
    process.run(
        process.Options(
            data=data,
            authorities=authorities,
            director_key=director_key,
            listen=listen,
            mqtt=mqtt,
            database=database,
            shadow_first=shadow_first,
        )
    )


def main() -> None:
    """Run the command; a mistake is one clear line on standard error, and exit code 2."""
    try:
        sys.exit(holdfast_server.main(standalone_mode=False) or 0)
    except HoldfastError as error:
        click.echo(f"holdfast-server: {error}", err=True)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "holdfast-server"
        click.echo(f"holdfast-server: {error.format_message()} Next: see {command} --help", err=True)
    except (click.Abort, KeyboardInterrupt):
        pass
    sys.exit(_MISTAKE)


if __name__ == "__main__":
    main()
