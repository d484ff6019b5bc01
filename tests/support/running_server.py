"""A server for tests, in this process or in one of its own, with keys for its people; and the command that talks to it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import urllib3
from click.testing import CliRunner
from sqlalchemy import URL, text

from holdfast_cli.main import holdfast
from holdfast_cli.session import Session
from holdfast_server import application, clock
from holdfast_server.api.body_limits import BodyLimits
from holdfast_server.context import Context
from holdfast_server.registry.blobs import FolderBlobs
from holdfast_server.registry.registry import Registry
from holdfast_server.serving import Address, WebServer
from holdfast_server.store.database import Database, parse_url
from holdfast_server.store.outbox import Director
from holdfast_shared import signing, strict_json
from holdfast_shared.authorities import Authorities, Holder, Publisher
from holdfast_shared.authorities import Director as DirectorKey
from holdfast_shared.errors import HoldfastError
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire.membership import TYPE, Membership
from support.reporting import eventually, everything

FLEET: Final = "test"
SAMPLE: Final = Path(__file__).parents[2] / "deploy" / "sample-release"
# Mira publishes everything, Faye only `faces`; Anna operates, Ben approves, Otto enrols; nobody knows Eve.
PEOPLE: Final = ("mira", "faye", "anna", "ben", "otto", "director", "eve")
KEYS: Final = {name: PrivateKey.generate() for name in PEOPLE}
START_S: Final = 60.0


def authorities() -> Authorities:
    public = {name: key.public.to_text() for name, key in KEYS.items()}

    def holders(*names: str) -> tuple[Holder, ...]:
        return tuple(Holder(name=name, public_key=public[name]) for name in names)

    return Authorities(
        fleet=FLEET,
        version=1,
        publishers=(
            Publisher(name="mira", public_key=public["mira"]),
            Publisher(name="faye", public_key=public["faye"], pipelines=("faces",)),
        ),
        directors=(DirectorKey(name="director", public_key=public["director"], epoch=1),),
        enrolment=holders("otto"),
        operators=holders("anna"),
        approvers=holders("anna", "ben"),
    )


def provision(folder: Path) -> Path:
    """Everybody's key file and `authorities.json`; the path of that."""
    for name, key in KEYS.items():
        (folder / f"{name}.pem").write_bytes(key.to_pem())
    file = folder / "authorities.json"
    file.write_bytes(strict_json.encode(authorities()))
    return file


def membership(device: str, region: str = "eu-west", *, counter: int = 1, signer: str = "otto", **fields: Any) -> bytes:
    """A signed membership of a device with a key of its own."""
    given: dict[str, Any] = {
        "fleet": FLEET, "device": device, "region": region, "counter": counter, "issued_at": 1,
        "public_key": KEYS["eve"].public.to_text(),
    }  # fmt: skip
    return signing.sign(strict_json.encode(Membership(**(given | fields))), TYPE, [KEYS[signer]])


@contextlib.contextmanager
def database_url(backend: str, folder: Path, postgres: str | None) -> Iterator[URL]:
    """An empty database of either kind; on PostgreSQL a schema that is dropped at the end."""
    if backend == "sqlite":
        yield URL.create("sqlite", database=str(folder / "server.db"))
        return
    assert postgres is not None
    name = f"server_{time.monotonic_ns()}"
    whole = Database(parse_url(postgres))
    with whole.write() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    try:
        yield parse_url(f"{postgres}?options=-csearch_path%3D{name}")
    finally:
        with whole.write() as connection:
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
        whole.close()


@contextlib.contextmanager
def server_context(url: URL, folder: Path) -> Iterator[Context]:
    """What every part of a server is given, without its threads."""
    database = Database(url)
    try:
        database.migrate()
        registry = Registry(
            database=database, authorities=authorities(), blobs=FolderBlobs(folder / "blobs"), now=clock.moment
        )
        director = Director(FLEET, KEYS["director"], 1)
        yield Context(database=database, authorities=authorities(), director=director, registry=registry)
    finally:
        database.close()


def store(context: Context, folder: Path) -> Any:
    """Everything that is stored: each table's rows, and every file under the blob folder with its bytes."""
    files = {str(file): file.read_bytes() for file in sorted((folder / "blobs").rglob("*")) if file.is_file()}
    return everything(context.database), files


class Answer(NamedTuple):
    status: int
    headers: urllib3.HTTPHeaderDict
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> Any:
        """The refusal, which always has its four parts."""
        error = self.json["error"]
        assert set(error) == {"code", "field", "message", "next"}
        assert error["message"]
        assert error["next"]
        return error


class Client:
    """Bare HTTP, and the operator's command."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self._folder = address, folder
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(30))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """`path` under /api/v1, unless it begins with a slash."""
        where = path if path.startswith("/") else f"/api/v1/{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self._pool.request(method, self.address + where, body=body, headers=named, redirect=False)
        return Answer(response.status, response.headers, response.data)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def holdfast(self, *words: str | Path, key: str = "anna") -> Any:
        """What the command prints with --json. Raises the HoldfastError that it would show."""
        before = ["--server", self.address, "--key", str(self._folder / f"{key}.pem"), "--json"]
        done = CliRunner().invoke(holdfast, [*before, *map(str, words)], obj=Session(), standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return json.loads(done.stdout.splitlines()[-1])

    def refused(self, *words: str | Path, key: str = "anna") -> HoldfastError:
        """The one clear error."""
        with pytest.raises(HoldfastError) as caught:
            self.holdfast(*words, key=key)
        assert caught.value.field
        assert caught.value.next_step
        return caught.value

    def close(self) -> None:
        self._pool.clear()


class Running(NamedTuple):
    client: Client
    context: Context
    folder: Path
    stopping: threading.Event

    def store(self) -> Any:
        return store(self.context, self.folder)


@contextlib.contextmanager
def running_server(context: Context, folder: Path) -> Iterator[Running]:
    """API and page of `context` on the real web server, in this process, without scheduler and broker."""
    provision(folder)
    stopping = threading.Event()
    app = application.create(context, lambda: False, stopping=stopping)
    server = WebServer(app, Address("127.0.0.1", 0), BodyLimits(context.registry.expected_size).of)
    thread = threading.Thread(target=server.serve, args=(stopping,), daemon=True)
    thread.start()
    client = Client(server.address.url, folder)
    try:
        yield Running(client, context, folder, stopping)
    finally:
        client.close()
        stopping.set()
        server.wake()
        thread.join(20)
        assert not thread.is_alive()


class ServerProcess:
    """`holdfast-server run` on a folder: may be stopped, killed and started again."""

    def __init__(self, folder: Path, *, mqtt: str = "mqtt://127.0.0.1:1", database: str | None = None) -> None:
        self.folder, self.data = folder, folder / "data"
        self._words = [
            "run", "--data", str(self.data), "--authorities", str(provision(folder)),
            "--director-key", str(folder / "director.pem"), "--listen", "127.0.0.1:0", "--mqtt", mqtt,
            *(["--database", database] if database else []),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Client | None = None

    def start(self) -> Client:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([program("holdfast-server"), *self._words], stdout=log, stderr=log)
        found = eventually(self._address, within_s=START_S)
        self.client = Client(found["http"], self.folder)
        return self.client

    def _address(self) -> Any:
        """Where it listens: a killed one's address may still lie there."""
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        file = self.data / "server.json"
        found = json.loads(file.read_bytes()) if file.exists() else {}
        return found if found.get("pid") == self._process.pid else None

    def stop(self, *, how: int = signal.SIGTERM, within_s: float = 20.0) -> int:
        """Its exit code."""
        assert self._process is not None
        if self.client is not None:
            self.client.close()
        self._process.send_signal(how)
        code = self._process.wait(within_s)
        self._process = None
        return code

    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def close(self) -> None:
        if self._process is not None:
            self.stop(how=signal.SIGKILL)


@contextlib.contextmanager
def server_process(folder: Path, **how: Any) -> Iterator[ServerProcess]:
    process = ServerProcess(folder, **how)
    try:
        process.start()
        yield process
    finally:
        process.close()


def program(name: str) -> str:
    """One of our commands, beside the interpreter that runs the tests."""
    return str(Path(sys.executable).parent / name)


def release_folder(folder: Path, *, version: str = "1.0.0", name: str = "release", ballast: bytes = b"") -> Path:
    """A copy of the sample release, to spoil, to give another version, or to make as heavy as a real one."""
    copy = folder / name
    shutil.copytree(SAMPLE, copy)
    if ballast:
        (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes() + _unknown_field(ballast))
    file = copy / "release.toml"
    told = file.read_text().replace('version = "1.0.0"\ndescription', f'version = "{version}"\ndescription')
    if ballast:  # another file is another version of the model
        told = told.replace('version = "1.0.0"\nsource', f'version = "{version}"\nsource')
    file.write_text(told)
    return copy


def _unknown_field(content: bytes) -> bytes:
    """A field of Protocol Buffers that no reader of ONNX knows, and all pass over: number 1000, with its length."""
    length, digits = len(content), []
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([0xC2, 0x3E, *digits, length]) + content
