"""The REST API, from the operator's side: urllib3 with timeouts, answers as parsed JSON, refusals as errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import urllib3
from urllib3.util import Timeout

from holdfast_cli.failures import Unreachable, refused
from holdfast_shared.errors import Malformed

BASE: Final = "/api/v1"
CONNECT_S: Final = 5.0
# A plan over a large fleet is computed while we wait.
READ_S: Final = 30.0
# A list of a page of devices is the largest answer; what is larger is not our server.
ANSWER_BYTES_MAX: Final = 64 * 1024**2
CHUNK_BYTES: Final = 256 * 1024
HTTP_REFUSED: Final = 400


class Answer(NamedTuple):
    """A good answer: 200 already so, 201 made, 202 wants more first."""

    status: int
    body: Any


class Progress(Protocol):
    """Told of every chunk that went out."""

    def update(self, size_bytes: int, /) -> object: ...


class Server:
    """One server. Reads may be repeated; a signed write is accepted once, and says so."""

    __slots__ = ("_pool", "address")

    def __init__(self, address: str) -> None:
        parsed = urllib3.util.parse_url(address)
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.path not in (None, "", "/"):
            raise Malformed(
                f"{address!r} is no server address",
                field="--server",
                next_step="write it like http://127.0.0.1:8080",
            )
        self.address = f"{parsed.scheme}://{parsed.netloc}"
        self._pool = urllib3.PoolManager(
            timeout=Timeout(connect=CONNECT_S, read=READ_S), retries=False, headers={"user-agent": "holdfast-cli"}
        )

    def get(self, *path: str, **query: str | int | None) -> Any:
        """The JSON at `BASE/<path…>`. Raises Refused or Unreachable."""
        asked = {name.rstrip("_"): value for name, value in query.items() if value is not None}
        url = self._url(*path) + (f"?{urlencode(asked)}" if asked else "")
        return self._ask("GET", url).body

    def fleet(self) -> str:
        """The fleet that this server runs: every signed document names it."""
        return str(self.get("status")["fleet"])

    def post(self, *path: str, body: bytes) -> Answer:
        """Send a signed document. Raises Refused or Unreachable."""
        return self._ask("POST", self._url(*path), body=body, headers={"content-type": "application/json"})

    def put_file(self, *path: str, file: Path, size_bytes: int, progress: Progress) -> None:
        """Stream a file. Its length goes ahead, so the server can refuse before a byte is sent."""

        def chunks() -> Iterator[bytes]:
            with file.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    yield chunk
                    progress.update(len(chunk))

        headers = {"content-type": "application/octet-stream", "content-length": str(size_bytes)}
        self._ask("PUT", self._url(*path), body=chunks(), headers=headers)

    def _url(self, *path: str) -> str:
        return "/".join([self.address + BASE, *(quote(part, safe=":") for part in path)])

    def _ask(self, method: str, url: str, **request: Any) -> Answer:
        try:
            response = self._pool.request(method, url, preload_content=False, redirect=False, **request)
            try:
                raw = response.read(ANSWER_BYTES_MAX, decode_content=True)
            finally:
                response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(
                f"no answer from {self.address}: {_reason(error)}",
                field="--server",
                next_step="check that holdfast-server runs there, or name another with --server URL",
            ) from error
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if response.status >= HTTP_REFUSED or body is None:
            raise refused(body, status=response.status, where=self.address)
        return Answer(response.status, body)


def _reason(error: Exception) -> str:
    """The last cause in words: `connection refused`, not a stack of class names."""
    text = str(error).rpartition("] ")[2] or str(error)
    return text.rpartition(": ")[2].strip("') ").lower() or type(error).__name__
