"""What `doctor` looks at around the record: the device's other processes, the broker and the server. Each within a deadline."""

from __future__ import annotations

import email.utils
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from holdfast_agent.commands import gateway_says
from holdfast_agent.commands.told import Finding
from holdfast_agent.core.record import Record
from holdfast_agent.edge import local_control, request
from holdfast_agent.edge.identity import Identity
from holdfast_agent.edge.layout import StateFolder
from holdfast_shared.broker_address import BrokerAddress
from holdfast_shared.errors import HoldfastError
from holdfast_shared.wire.report import Isolation
from holdfast_worker import protocol
from holdfast_worker.protocol import Hello, Kind, Stop

# Starting Python, and importing a runtime, on a small device that has other things to do.
WORKER_S: Final = 30.0
REACH_S: Final = 5.0
SERVER_S: Final = 15.0
CLOCK_OFF_S: Final = 300.0
# What a model could do to the rest of the device. The others are told by `status`: how much they matter is the device's business.
ESSENTIAL: Final = ("memory", "programs", "network", "system", "files")
_OUTPUT_BYTES_MAX: Final = 64 * 1024
# Imports what a worker imports, in a process of its own: this one stays as small as the agent. A runtime that is not installed
# is no finding; one that is, and cannot be imported, is.
_FINGERPRINT: Final = """
import json
from holdfast_worker import installed
from holdfast_worker.failures import LoadRefused
from holdfast_worker.runtime import runtime_named
here, broken = {}, {}
for name in sorted(installed.runtimes()):
    try:
        here[name] = runtime_named(name).describe()["runtime"]
    except LoadRefused as refused:
        broken[name] = refused.detail
print(json.dumps([here, broken]))
"""


def worker() -> Finding:
    """Whether a worker process can be started as the gateway starts one, and speaks our protocol."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "holdfast_worker", "--fd", str(theirs.fileno())]
        try:
            said = _hello(command, ours, theirs)
        except (OSError, ValueError, msgspec.DecodeError, subprocess.SubprocessError) as error:
            do = "install it again: deploy/install. Its own words are above"
            return Finding(check="worker", state="fail", said=f"it cannot be started: {error}", do=do)
    if said.version != protocol.VERSION:
        do = "install agent and worker of one version: deploy/install"
        return Finding(
            check="worker", state="fail", said=f"it speaks version {said.version}, not {protocol.VERSION}", do=do
        )
    return Finding(check="worker", state="ok", said=f"starts, and speaks version {said.version} of the protocol")


def runtime() -> Finding:
    """Whether every model runtime that is installed can be imported, and which that is."""
    do = "install one of this version's extras `onnx`, `tflite` (deploy/install --runtime)"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _FINGERPRINT], capture_output=True, text=True, timeout=WORKER_S, check=False
        )
        here, broken = json.loads(ended.stdout[:_OUTPUT_BYTES_MAX]) if ended.returncode == 0 else ({}, {})
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Finding(check="runtime", state="fail", said=f"it cannot be tried: {error}", do=do)
    if broken:
        return Finding(check="runtime", state="fail", said="; ".join(broken.values())[:400], do=do)
    if not here:
        last = (ended.stderr.strip().splitlines() or ["none is installed"])[-1]
        return Finding(check="runtime", state="fail", said=last[:400], do=do)
    return Finding(check="runtime", state="ok", said=", ".join(f"{name}: {version}" for name, version in here.items()))


def gateway(folder: StateFolder, saved: Record | None) -> Finding:
    """Whether it answers, with what the record says."""
    found = gateway_says.now(folder)
    if found.addresses is None:
        do = "start it: systemctl start holdfast-gateway"
        return Finding(check="gateway", state="warn", said="none runs: nothing is served", do=do)
    if found.why_not:
        return Finding(check="gateway", state="fail", said=found.why_not, do="systemctl restart holdfast-gateway")
    wanted = {name: one.serving for name, one in saved.pipelines.items() if one.serving} if saved is not None else {}
    other = [
        f"{name}: {found.version_of(name) or 'nothing'} instead of {target.release.version}"
        for name, target in sorted(wanted.items())
        if found.version_of(name) != target.release.version
    ]
    if other:
        do = "look again in a minute; then see its log: journalctl -u holdfast-gateway"
        return Finding(check="gateway", state="warn", said=f"it answers with {'; '.join(other)}", do=do)
    said = ", ".join(f"{one.name} {one.version}" for one in found.pipelines if one.answers) or "nothing yet"
    return Finding(check="gateway", state="ok", said=f"{found.addresses.http} answers with {said}")


def shadows(folder: StateFolder) -> Iterator[Finding]:
    """What shadows, if anything does, and how it agrees."""
    for one in gateway_says.now(folder).shadows:
        said = gateway_says.shadow_line(one).strip()
        if one.state == "ready":
            yield Finding(check="shadow", state="ok", said=said)
        else:
            do = "nothing that serves depends on it; see the gateway's log: journalctl -u holdfast-gateway"
            yield Finding(check="shadow", state="warn", said=said, do=do)


def isolation(folder: StateFolder) -> Finding:
    """How workers are confined: by the gateway's word, or as a process of this user can confine itself."""
    found = gateway_says.now(folder)
    known = found.isolation.applied.keys() | found.isolation.degraded.keys()
    told = found.isolation if known >= set(ESSENTIAL) else _isolation_here()  # no worker has told yet
    if told is None:
        do = "install it again: deploy/install"
        return Finding(check="isolation", state="warn", said="a worker cannot say how it would be confined", do=do)
    lacking = [f"{name}: {why}" for name, why in sorted(told.degraded.items()) if name in ESSENTIAL]
    by = ", ".join(sorted(told.applied))
    if lacking:
        do = "take it out of [gateway] isolation_off, or run a kernel with seccomp and Landlock (5.13 or later)"
        return Finding(check="isolation", state="warn", said=f"workers lack {'; '.join(lacking)}", do=do)
    return Finding(check="isolation", state="ok", said=f"workers are confined by {by}")


def agent(folder: StateFolder) -> Finding:
    if local_control.listens(folder.agent_socket):
        return Finding(check="agent", state="ok", said="it runs")
    do = "start it: systemctl start holdfast-agent, and see journalctl -u holdfast-agent"
    return Finding(check="agent", state="warn", said="none runs: the device serves, and follows nothing", do=do)


def broker(url: str) -> Finding:
    """Whether something takes connections there. Not more: a second session of this device would end the agent's."""
    address = BrokerAddress.parse(url, field="[broker] url")
    try:
        socket.create_connection((address.host, address.port), timeout=REACH_S).close()
    except OSError as error:
        do = "see the network and [broker] url. The device serves on, asks the server over HTTP, and keeps its reports"
        return Finding(check="broker", state="fail", said=f"{url} cannot be reached: {error}", do=do)
    return Finding(check="broker", state="ok", said=f"{url} takes connections")


def server(url: str, known: Identity | None) -> Iterator[Finding]:
    """Whether it answers what the device asks; and its word for the time, which binds nobody."""
    region = known.membership.region if known is not None else "-"
    try:
        with request.get(url, f"/api/v1/assignments/region/{region}", deadline_s=SERVER_S) as answer:
            status, date = answer.status, answer.header("Date")
    except HoldfastError as error:
        do = "see the network and [server] url. The device serves on, and cannot fetch what it is assigned"
        yield Finding(check="server", state="fail", said=error.message, do=do)
        return
    if status >= 400 and known is not None:
        do = "see [server] url: it should be a holdfast-server"
        yield Finding(check="server", state="fail", said=f"{url} answers with status {status}", do=do)
    else:
        yield Finding(check="server", state="ok", said=f"{url} answers")
    off_s = _off_s(date)
    if off_s is not None and abs(off_s) > CLOCK_OFF_S:
        said = f"the server's clock is {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} ours"
        yield Finding(check="time", state="warn", said=said, do="timedatectl set-ntp true, here or there")


def _hello(command: list[str], ours: socket.socket, theirs: socket.socket) -> Hello:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True)
    try:
        theirs.close()
        ours.settimeout(WORKER_S)
        with ours.makefile("rb") as stream:
            head = stream.read(protocol.LENGTH.size + 1)
            if len(head) <= protocol.LENGTH.size or head[-1] != Kind.HELLO:
                raise ValueError("it ended without a word" if not head else "it does not say HELLO first")
            length = protocol.LENGTH.unpack(head[: protocol.LENGTH.size])[0]
            said = msgspec.json.decode(stream.read(min(length - 1, _OUTPUT_BYTES_MAX)), type=Hello)
        ours.sendall(protocol.control(Kind.STOP, Stop()))
        process.wait(WORKER_S)
        return said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(WORKER_S)


def _isolation_here() -> Isolation | None:
    command = [sys.executable, "-m", "holdfast_worker.isolation"]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=WORKER_S, check=True)
        return msgspec.json.decode(ended.stdout[:_OUTPUT_BYTES_MAX], type=Isolation)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError):
        return None


def _off_s(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - time.time() if date else None
    except (ValueError, OverflowError):
        return None
