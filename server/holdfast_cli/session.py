"""What every command shares: which server, whose key, text or JSON. `--server`, `--key` and `--json` may stand before or
after the command's name; the later one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from holdfast_cli.server import Server
from holdfast_shared.errors import Malformed
from holdfast_shared.key_file import read_key
from holdfast_shared.signing import PrivateKey

SERVER_DEFAULT: Final = "http://127.0.0.1:8080"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Session:
    """Filled by the options as click reads them."""

    address: str = SERVER_DEFAULT
    key_file: Path | None = None
    as_json: bool = False
    _server: Server | None = field(default=None, repr=False)

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = Server(self.address)
        return self._server

    def key(self) -> PrivateKey:
        """The signer's key. Raises Malformed or Missing that names `--key`."""
        if self.key_file is None:
            raise Malformed(
                "this command signs what it sends, and no key is given",
                field="--key",
                next_step="name your key file with --key FILE or HOLDFAST_KEY; make one with: holdfast key new FILE",
            )
        return read_key(self.key_file, option="--key")


def reads(function: F) -> F:
    """For a command that only asks: `--server` and `--json`."""
    return _server_option(_json_option(function))


def signs(function: F) -> F:
    """For a command that changes something: `--key` too."""
    return _key_option(reads(function))


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(context.ensure_object(Session), name, value)

    return callback


def _option(flag: str, name: str, *, environment: str | None = None, **more: Any) -> Callable[[F], F]:
    return click.option(flag, envvar=environment, expose_value=False, callback=_remember(name), default=None, **more)


_server_option: Final = _option(
    "--server", "address", metavar="URL", help=f"The server's address (or HOLDFAST_SERVER). Default: {SERVER_DEFAULT}"
)
_key_option: Final = _option(
    "--key",
    "key_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Your private key, PEM (or HOLDFAST_KEY).",
)
_json_option: Final = _option(
    "--json", "as_json", is_flag=True, flag_value=True, help="Print JSON, one object a line, and nothing else."
)


def root_options(function: F) -> F:
    """The same options on `holdfast` itself, where the environment variables are read."""
    for decorate in (
        _option("--json", "as_json", is_flag=True, flag_value=True, help="Print JSON, one object a line."),
        _option(
            "--key",
            "key_file",
            environment="HOLDFAST_KEY",
            metavar="FILE",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Your private key, PEM (or HOLDFAST_KEY).",
        ),
        _option(
            "--server",
            "address",
            environment="HOLDFAST_SERVER",
            metavar="URL",
            help=f"The server's address (or HOLDFAST_SERVER). Default: {SERVER_DEFAULT}",
        ),
    ):
        function = decorate(function)
    return function
