"""What `doctor` looks at of TLS: whether broker and server show a certificate that this device believes, and for how long."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from holdfast_agent.commands.told import Finding
from holdfast_shared.broker_address import BrokerAddress

REACH_S: Final = 5.0
# Whoever renews by hand needs some days; what renews by itself has done so by then.
DAYS_LEFT_MIN: Final = 14
_DAY_S: Final = 86_400
# OpenSSL's x509_vfy.h: what is wrong with a certificate, by who can mend it.
_OF_TIME: Final = {9, 10}
_OF_NAME: Final = {62, 64}


class Address(NamedTuple):
    field: str
    host: str
    port: int
    tls: bool


def certificates(broker_url: str, server_url: str) -> Iterator[Finding]:
    """One finding for each that speaks TLS; one for both when neither does."""
    addresses = addresses_of(broker_url, server_url)
    closed = [address for address in addresses if address.tls]
    for address in closed:
        yield _certificate(address)
    open_ = [address for address in addresses if not address.tls and not _is_loopback(address.host)]
    if open_:
        named = " and ".join(one.field for one in open_)
        said = f"{named}: without TLS; who sits on the way reads along, and changes nothing that is signed"
        do = "write mqtts:// or https:// once they offer it, or reach them through a tunnel"
        yield Finding(check="certificate", state="warn", said=said, do=do)
    elif not closed:
        yield Finding(check="certificate", state="ok", said="none is needed: broker and server are on this machine")


def addresses_of(broker_url: str, server_url: str) -> tuple[Address, Address]:
    """Both were checked with the configuration."""
    broker, server = BrokerAddress.parse(broker_url, field="[broker] url"), urlsplit(server_url)
    tls = server.scheme == "https"
    return (
        Address("[broker] url", broker.host, broker.port, broker.tls),
        Address("[server] url", server.hostname or "", server.port or (443 if tls else 80), tls),
    )


def _certificate(address: Address) -> Finding:
    where = f"{address.field}: {address.host}:{address.port}"
    try:
        with socket.create_connection((address.host, address.port), timeout=REACH_S) as connection:
            shown = _shown(connection, address.host)
    except ssl.SSLCertVerificationError as error:
        said = f"{where} shows a certificate that is not believed: {error.verify_message}"
        return Finding(check="certificate", state="fail", said=said, do=_do(error.verify_code, address))
    except ssl.SSLError as error:
        do = f"see {address.field}: does it speak TLS there?"
        return Finding(check="certificate", state="fail", said=f"{where} does not speak TLS: {error.reason}", do=do)
    except OSError as error:
        do = "see its line above; the certificate is looked at once it can be reached"
        return Finding(check="certificate", state="warn", said=f"{where} cannot be reached: {error}", do=do)
    days = (ssl.cert_time_to_seconds(shown) - time.time()) / _DAY_S
    said = f"{where} is believed for {days:.0f} more day(s), until {shown}"
    if days < DAYS_LEFT_MIN:
        do = "have it renewed: past that day this device follows nothing, and serves on"
        return Finding(check="certificate", state="warn", said=said, do=do)
    return Finding(check="certificate", state="ok", said=said)


def _shown(connection: socket.socket, host: str) -> str:
    """When the certificate ends, as it says; verified as the agent verifies it."""
    with ssl.create_default_context().wrap_socket(connection, server_hostname=host) as secured:
        found = secured.getpeercert()
    assert found is not None, "a context that verifies has the certificate"
    return str(found["notAfter"])


def _do(code: int, address: Address) -> str:
    if code in _OF_TIME:
        return "if this device's clock is right (see above), have the certificate renewed where it is shown"
    if code in _OF_NAME:
        return f"write the name that the certificate is for into {address.field}, or have one made for {address.host}"
    return (
        "if it is yours, have this device believe its authority: copy that certificate to /usr/local/share/ca-certificates"
        " and run update-ca-certificates; else take it as an attack"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
