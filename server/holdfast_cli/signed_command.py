"""An operator's signed request: checked, signed by one or two keys, and sent by ways that carry the same bytes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from holdfast_cli import broker
from holdfast_cli.session import Session
from holdfast_shared import durable, selector, signing, strict_json
from holdfast_shared.broker_address import BrokerAddress
from holdfast_shared.errors import Malformed, Missing
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.command import TYPE, Act, Command

A = TypeVar("A", bound=msgspec.Struct)

# Long enough for two people in one room, short enough that a lost file is soon worthless.
LIFETIME_S: Final = 300


def checked(kind: type[A], **fields: Any) -> A:
    """An act whose fields have their stated form. Raises Malformed that names the field."""
    values = {name: value for name, value in fields.items() if value is not None}
    for field in msgspec.structs.fields(kind):
        if field.name in values:
            try:
                msgspec.convert(msgspec.to_builtins(values[field.name]), field.type)
            except msgspec.ValidationError as error:
                raise Malformed(
                    f"{values[field.name]!r:.100} is not valid: {str(error).partition(' - at')[0]}",
                    field=field.name,
                    next_step="correct it; --help shows an example",
                ) from error
    return kind(**values)


def envelope(act: Act, *, fleet: str, keys: Sequence[PrivateKey], lifetime_s: int = LIFETIME_S) -> bytes:
    """`act` as a signed `holdfast.command/1`, valid from now on."""
    now = time.time_ns() // 1000
    command = Command(
        fleet=fleet, id=secrets.token_hex(16), issued_at=now, not_after=now + lifetime_s * 1_000_000, act=act
    )
    return signing.sign(strict_json.encode(command), TYPE, keys)


def send(session: Session, signed: bytes) -> Any:
    """Over HTTP; the server's result."""
    return session.server.post("commands", body=signed).body


def send_by_broker(url: str, verb: str, signed: bytes, *, fleet: str) -> Any:
    """Over MQTT, answered on a response topic of our own; the server's result."""
    return broker.ask(BrokerAddress.parse(url), fleet=fleet, verb=verb, message=signed)


def write_file(file: Path, signed: bytes) -> None:
    """Leave an envelope in a file, for whoever sends or installs it."""
    try:
        durable.write_file(file, signed)
    except OSError as error:
        raise Missing(
            f"cannot write {file}: {error.strerror}",
            field="--output",
            next_step="choose a folder that you may write to",
        ) from error


def segment_text(segment: Any) -> str:
    """A segment as people write it, whichever way the server gave it."""
    if isinstance(segment, str):
        return segment
    return selector.written(msgspec.convert(segment, tuple[selector.Term, ...]))
