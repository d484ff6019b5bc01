"""What is answered whatever is asked: limits before anything is read, and every refusal in one form."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import pytest
import urllib3

from holdfast_server import serving
from holdfast_server.rollouts import views
from support.running_server import Running, membership


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "nothing", 404, "not-found"),
        ("GET", "", 404, "not-found"),
        ("GET", "devices/", 404, "not-found"),
        ("POST", "devices", 405, "method-not-allowed"),
        ("DELETE", "releases/iris/1.0.0", 405, "method-not-allowed"),
        ("PUT", "models", 405, "method-not-allowed"),
        ("GET", "devices?segmnet=region=eu-west", 400, "malformed"),
        ("GET", "status?verbose=1", 400, "malformed"),
        ("GET", "devices?limit=0", 400, "malformed"),
        ("GET", "devices?limit=-1", 400, "malformed"),
        ("GET", "devices?limit=2001", 400, "malformed"),
        ("GET", "devices?segment=region=", 400, "malformed"),
        ("GET", "decisions?after=x", 400, "malformed"),
        ("GET", "decisions?limit=1001", 400, "malformed"),
        ("GET", "releases/iris/compare?from=1.0.0", 400, "malformed"),
        ("GET", "devices/a%00b", 400, "malformed"),
        ("GET", "releases?pipeline=a%00b", 400, "malformed"),
        ("GET", "devices?after=" + "a" * 5000, 400, "malformed"),
        ("GET", "blobs/..%2f..%2fserver.db", 404, "not-found"),
        ("GET", "blobs/sha256:..", 400, "malformed"),
    ],
)
def test_every_refusal_has_its_four_parts(server: Running, method: str, path: str, status: int, code: str) -> None:
    answer = server.client.ask(method, path)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(("path", "limit"), [("memberships", 16_384), ("commands", 65_536), ("models", 524_288)])
def test_a_body_over_its_limit_is_refused(server: Running, path: str, limit: int) -> None:
    before = server.store()
    over = server.client.ask("POST", path, b"x" * (limit + 1))
    assert (over.status, over.error["code"], over.error["field"]) == (413, "too-large", "body")
    assert server.client.ask("POST", path, b"x" * limit).status == 400
    assert server.store() == before


def test_a_body_without_end_is_not_waited_for(server: Running) -> None:
    """It announces more than anybody may send: it is refused before it comes."""
    host = server.client.address.removeprefix("http://")
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port)), timeout=20) as connection:
        head = f"PUT /api/v1/blobs/sha256:{'0' * 64} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {2**40}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()
    assert b" 404 " in answer.splitlines()[0]
    assert b'"next":"publish the manifest that names it first' in answer


def test_a_chunked_body_is_passed_over(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = iter([membership("dev-1")])
    answer = server.client.ask("POST", "memberships", chunks, transfer_encoding="chunked")
    assert (answer.status, answer.error["field"]) == (400, "body")
    monkeypatch.setattr(serving, "DISCARDED_BYTES_MAX", 10_000)
    with contextlib.suppress(urllib3.exceptions.HTTPError):  # it may close before all of it is sent
        more = server.client.ask("POST", "memberships", iter([b"x" * 8_000] * 8), transfer_encoding="chunked")
        assert more.error["code"] == "too-large"
    assert server.client.get("status").json["devices"] == 0


def test_what_is_not_http_is_refused_in_the_same_form(server: Running) -> None:
    host, _, port = server.client.address.removeprefix("http://").partition(":")
    for sent in (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(sent)
            answer = connection.makefile("rb").read()
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"code", "field", "message", "next"}


def test_a_page_elsewhere_that_points_here_may_not_read(server: Running) -> None:
    """DNS rebinding: the name is another's, the address ours."""
    for path in ("/api/v1/status", "/"):
        assert server.client.get(path, host="evil.example").status == 400
    assert server.client.get("status", host="localhost:8080").status == 200


def test_a_bug_is_answered_without_its_inside(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(views, "fleet", broken)
    for path in ("/api/v1/fleet", "/"):
        answer = server.client.get(path)
        assert answer.status == 500
        assert b"secret" not in answer.data
        assert b"Traceback" not in answer.data
    assert server.client.get("fleet").error["code"] == "internal"


def test_an_unknown_page_is_a_page(server: Running) -> None:
    answer = server.client.get("/nothing")
    assert answer.status == 404
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


# ---------------------------------------------------------------- what is read
def test_the_device_list_comes_in_pages(server: Running) -> None:
    for number in range(5):
        region = "eu-west" if number % 2 else "us-east"
        server.client.ask("POST", "memberships", membership(f"dev-{number}", region))
    first = server.client.get("devices?limit=2").json
    assert [one["device"] for one in first["devices"]] == ["dev-0", "dev-1"]
    second = server.client.get(f"devices?limit=2&after={first['next']}").json
    third = server.client.get(f"devices?limit=2&after={second['next']}").json
    assert [one["device"] for one in (*second["devices"], *third["devices"])] == ["dev-2", "dev-3", "dev-4"]
    assert third["next"] is None
    there = server.client.get("devices?segment=region%3Dus-east&limit=2&after=dev-0").json
    assert ([one["device"] for one in there["devices"]], there["next"]) == (["dev-2", "dev-4"], None)
