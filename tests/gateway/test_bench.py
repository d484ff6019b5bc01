"""What every worker is told, whether it answers or shadows; and what becomes of both where the system refuses something."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.edge.layout import StateFolder
from holdfast_gateway import standby
from holdfast_gateway.bench import Bench
from holdfast_gateway.control import Route
from holdfast_gateway.counts import Counts
from holdfast_gateway.inference import Inference
from holdfast_gateway.losses import LOSSES_MAX
from holdfast_gateway.pipeline import Pipeline
from holdfast_gateway.shadow import Shadow
from holdfast_gateway.shadow_queue import Nobody, Shadowed
from holdfast_gateway.slot import Slot
from holdfast_gateway.windows import Ledger
from holdfast_gateway.worker import Lost, Worker
from holdfast_shared.assign import Target
from holdfast_shared.failure_codes import condemns
from holdfast_shared.wire.environment import Settings
from holdfast_worker import protocol
from holdfast_worker.protocol import NO_HEADER, Answer, Load, Outcome, Ready
from support.gateway_bench import DEADLINE_S, PIPELINE, STAND_IN, installed
from support.pipeline_alone import Quiet


class Started(Bench):
    """Starts no process; keeps who would have been started."""

    def start(self, worker: Worker, environment: str, settings: Settings) -> None:  # noqa: ARG002 - the form of what it replaces
        self.workers.add(worker)

    @property
    def told(self) -> Load:
        """The only worker's."""
        (worker,) = self.workers
        return worker._load


class Alone:
    """The pipeline of a slot that nobody asks anything."""

    def changed(self, slot: Slot) -> None: ...

    def answered(self, slot: Slot, inference: Inference, answer: Answer, latency_ms: float) -> None: ...

    def lost(self, slot: Slot, lost: Lost) -> None: ...

    def submit(self, inference: Inference) -> None: ...

    def left(self, slot: Slot) -> None: ...


@pytest.fixture(autouse=True)
def _memory_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "MEMINFO", tmp_path / "none")


def bench_of(root: Path, delegates: Mapping[str, str] | None = None) -> Started:
    return Started(StateFolder(root), (), accelerators=tuple(delegates or ()), delegates=delegates or {})


def slot_of(bench: Bench, target: Target) -> Slot:
    return Slot(Alone(), PIPELINE, target, Counts(PIPELINE, target, wall_us=0), bench)


def shadow_of(bench: Bench, target: Target) -> Shadow:
    counts = Counts(PIPELINE, target, wall_us=0)
    return Shadow(PIPELINE, target, counts, bench, changed=lambda: None, left=lambda _: None)


def test_a_shadow_computes_on_what_the_device_has_as_a_slot_does(tmp_path: Path) -> None:
    """And knows the same codes of failure: rot is not told of what could not be read."""

    async def told() -> tuple[Load, Load]:
        has = {"coral": "/usr/lib/libedgetpu.so.1"}
        target = installed(StateFolder(tmp_path), "1.0.0")
        one, other = bench_of(tmp_path, has), bench_of(tmp_path, has)
        slot_of(one, target).start()
        shadow_of(other, target).settle(serves=True)
        return one.told, other.told

    slot, shadow = asyncio.run(told())
    assert (shadow.accelerators, shadow.delegates) == (("coral",), {"coral": "/usr/lib/libedgetpu.so.1"})
    differ = {name for name in Load.__struct_fields__ if getattr(slot, name) != getattr(shadow, name)}
    assert differ == {"nice", "measures", "shadows"}


def test_a_shadow_that_cannot_be_read_now_has_failed_and_ends_nothing_else(tmp_path: Path) -> None:
    """The gateway settles it once a second, on the path of its watchdog: what is raised there would end the gateway."""

    async def settled() -> Shadow:
        folder = StateFolder(tmp_path)
        target = installed(folder, "1.0.0")
        path = folder.manifest(target.release.digest)
        path.unlink()
        path.symlink_to(path)  # ELOOP: a refusal of the system, whoever asks
        shadow = shadow_of(bench_of(tmp_path), target)
        shadow.settle(serves=True)
        return shadow

    found = asyncio.run(settled())
    assert (found.state, found.code) == ("failed", "unreadable")


def no_socket(*_: object) -> tuple[socket.socket, socket.socket]:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("command", "refuses"), [((sys.executable,), True), (("/none/such",), False)], ids=["no socket", "no process"]
)
def test_a_system_that_starts_no_worker_condemns_no_release(
    command: Sequence[str], refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried a few times, as a lost worker is, and then told as what the system refused."""

    async def given_up() -> Slot:
        slot = slot_of(Bench(folder, command), target)
        if refuses:
            monkeypatch.setattr(socket, "socketpair", no_socket)
        return await failed(slot)

    folder = StateFolder(tmp_path)
    target = installed(folder, "1.0.0")
    found = asyncio.run(given_up())
    assert (found.code, found.loads, condemns(found.code)) == ("unreadable", LOSSES_MAX, False)
    assert "could not be started" in found.detail


@pytest.mark.parametrize(
    ("said", "code"), [("not-supported", "not-supported"), ("local-rollback", "load-failed"), ("x" * 99, "load-failed")]
)
def test_a_worker_names_no_failure_but_its_own(said: str, code: str, tmp_path: Path) -> None:
    """It may run a stranger's lines by then: neither a person's judgement nor a megabyte is its to say."""

    async def given_up() -> Slot:
        bench = Bench(folder, STAND_IN)
        slot = await failed(slot_of(bench, target))
        await true_soon(lambda: all(worker.gone for worker in bench.workers))
        return slot

    folder = StateFolder(tmp_path)
    target = installed(folder, "1.0.0", load=f"fail:{said}")
    found = asyncio.run(given_up())
    assert found.code == code
    assert "as it was told" in found.detail


@pytest.mark.parametrize(
    "fingerprint", [{"runtime": "x" * 2_000_000}, {str(n): "" for n in range(1000)}, {"x" * 1000: ""}]
)
def test_what_a_worker_says_of_its_environment_fits_in_what_an_agent_reads(fingerprint: dict[str, str]) -> None:
    """It goes on in every status and report: without a bound, one worker would cut the agent off from all slots."""
    said = Ready(inputs=(), outputs=(), fingerprint=fingerprint, load_ms=1.0, self_test_cases=1)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(said), type=Ready)


def test_what_a_shadow_holds_is_what_two_measurements_in_a_row_reached(tmp_path: Path) -> None:
    async def scenario() -> None:
        target = installed(StateFolder(tmp_path), "1.0.0")
        shadow = shadow_of(bench_of(tmp_path), target)
        for held in (100, 300, 200, 50):
            shadow.memory_bytes = lambda held=held: held  # type: ignore[method-assign, misc] # a worker of that size
            shadow.measure_memory()
        assert shadow.counts.memory_bytes_max == 200

    asyncio.run(scenario())


def test_a_comparing_worker_that_answers_instead_is_lost_with_what_it_was_asked(tmp_path: Path) -> None:
    """Every request is counted once, whatever a worker says."""

    async def scenario() -> None:
        target = installed(StateFolder(tmp_path), "1.0.0")
        bench = bench_of(tmp_path)
        shadow = shadow_of(bench, target)
        shadow.settle(serves=True)
        (worker,) = bench.workers
        shadow.state = "ready"
        asked = Inference(Nobody(), b"{}", version="", wants_binary=False, header_length=NO_HEADER, since=0.0)
        worker.asked.append(Shadowed(asked, b"{}", NO_HEADER, 1))
        said = protocol.answer_head(0, Outcome.OK, header_length=NO_HEADER, compute_us=1, body_bytes=2) + b"{}"
        worker.room()[: len(said)] = said
        worker.filled(len(said))
        totals = shadow.counts.shadow.totals
        assert (totals.requests, totals.errors, totals.dropped) == (1, 1, 0)
        shadow.retire()

    asyncio.run(scenario())


def test_of_room_for_one_the_refuge_has_it_and_not_the_shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory comes back while both wait for it."""
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(standby, "MEMINFO", meminfo)

    def left(available_bytes: int) -> None:
        meminfo.write_text(f"MemTotal: {10 * 2**20} kB\nMemAvailable: {available_bytes // 1024} kB\n")

    async def scenario() -> None:
        bench = bench_of(tmp_path)
        folder = StateFolder(tmp_path)
        serving, refuge, shadow = (installed(folder, version) for version in ("1.1.0", "1.0.0", "1.2.0"))
        pipeline = Pipeline(PIPELINE, Quiet(), Ledger(), bench)
        left(0)
        pipeline.route(Route(pipeline=PIPELINE, serving=serving, refuge=refuge, shadow=shadow))
        pipeline.slots[serving.key].ready(Ready(inputs=(), outputs=(), fingerprint={}, load_ms=1.0, self_test_cases=1))
        assert pipeline.slots[refuge.key].cold
        left(2**30 + standby.WORKER_BYTES * 3 // 2)  # a tenth of 10 GiB is the reserve
        pipeline.tick()
        assert pipeline.slots[refuge.key].state == "loading"
        assert pipeline.beside.shadow is not None
        assert pipeline.beside.shadow.state == "stopped"
        left(2**30 + standby.WORKER_BYTES * 3)
        pipeline.tick()
        assert str(pipeline.beside.shadow.state) == "loading"

    asyncio.run(scenario())


async def failed(slot: Slot) -> Slot:
    """Once it is."""
    slot.start()
    await true_soon(lambda: slot.state == "failed")
    return slot


async def true_soon(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not what():  # noqa: ASYNC110 - a slot has no event for a test to wait on
            await asyncio.sleep(0.01)
