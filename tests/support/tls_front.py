"""TLS before anything that listens on loopback, with an authority and certificates of the test's own."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST: Final = "localhost"
_PIECE_BYTES: Final = 16 * 1024
_LOOK_S: Final = 0.02


class Authority:
    """Signs certificates. Who believes it has `SSL_CERT_FILE` at `path`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Authority of a test")])
        made = self._begun(self._name, self._key, -400, 400).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.path = folder / "authority.pem"
        self.path.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def certificate(self, host: str = HOST, *, days_from: int = -1, days_to: int = 90) -> Path:
        """A file with a certificate for `host` and its key, good between those days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        made = self._begun(name, key, days_from, days_to).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False
        )
        path = self._folder / f"{host}-{days_from}-{days_to}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private)
        return path

    def _begun(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days_from: int, days_to: int
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days_from))
            .not_valid_after(now + timedelta(days=days_to))
        )


@contextlib.contextmanager
def running_tls_front(certificate: Path, port: int) -> Iterator[int]:
    """A port that speaks TLS and passes all on to `port`, plain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    closing, threads = threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while not closing.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=_pass_on, args=(context, connection, port, closing)))
                threads[-1].start()

        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield listener.getsockname()[1]
        finally:
            closing.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def _pass_on(context: ssl.SSLContext, connection: socket.socket, port: int, closing: threading.Event) -> None:
    with connection, contextlib.suppress(OSError):  # who does not believe the certificate hangs up
        connection.settimeout(10)
        with (
            context.wrap_socket(connection, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", port)) as inside,
        ):
            while not closing.is_set():
                ready = [outside] if outside.pending() else select.select([outside, inside], [], [], _LOOK_S)[0]
                for source in ready:
                    piece = source.recv(_PIECE_BYTES)
                    if not piece:
                        return
                    (inside if source is outside else outside).sendall(piece)
