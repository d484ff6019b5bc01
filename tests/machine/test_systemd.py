"""A device under a real process 1: installed by its README, started, hung, killed, and rid of again.

In their order, on one machine that they share.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import pytest

from support import digits_models
from support.device_surroundings import PIPELINE
from support.isolation_bench import LARGE_BYTES
from support.machine_bench import COMMAND, CONFIG, LIMITS, MachineBench, release, running_bench

WORKER_GROUP: Final = "/sys/fs/cgroup/system.slice/holdfast-gateway.service/worker-*"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineBench]:
    with running_bench(tmp_path_factory.mktemp("machine")) as made:
        yield made


def test_services_wait_for_their_configuration_and_then_start_by_themselves(
    bench: MachineBench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = bench.install(tmp_path_factory.mktemp("wheel"))
    assert "Next: write /etc/holdfast/agent.toml" in said
    bench.eventually(lambda: int(bench.service("agent", "NRestarts")) > 1, "an agent that tries again")
    assert "authorities" in bench.machine.fails(f"{COMMAND} doctor --config {CONFIG}")
    bench.configure()
    bench.eventually(lambda: bench.service("agent", "ActiveState") == "active", "an agent that is ready")
    bench.eventually(lambda: bench.service("gateway", "ActiveState") == "active", "a gateway that is ready")
    said = bench.machine.fails(f"{COMMAND} doctor --config {CONFIG}")
    failed = [line.split()[1] for line in said.splitlines() if line.startswith("fail")]
    assert failed == ["server"], said  # here it is one of files alone


def test_a_release_is_fetched_tested_and_serves(bench: MachineBench) -> None:
    bench.serve(release("1.0.0"))
    bench.until_committed("1.0.0")
    bench.serves("1.0.0")


def test_its_worker_is_confined_by_the_kernels_control_groups(bench: MachineBench) -> None:
    said = bench.isolation()
    assert said.applied["memory"] == "cgroup memory.max", said
    assert said.applied["tasks"] == "cgroup pids.max", said
    assert set(said.degraded) <= {"user"}, said
    assert int(bench.machine.run(f"cat {WORKER_GROUP}/memory.max")) == LIMITS.memory_bytes_max
    assert int(bench.machine.run(f"cat {WORKER_GROUP}/pids.max")) == 64
    assert int(bench.machine.run(f"wc -l < {WORKER_GROUP}/cgroup.procs")) == 1


def test_with_its_drop_in_workers_are_another_user(bench: MachineBench) -> None:
    folder = "/etc/systemd/system/holdfast-gateway.service.d"
    bench.machine.run(f"install -D -m 0644 /root/holdfast/deploy/worker-user.conf {folder}/worker-user.conf")
    bench.machine.run(
        f'sed -i \'s/^# worker_user = "" /worker_user = "holdfast-worker" /\' {CONFIG} && systemctl daemon-reload'
    )
    bench.machine.run("systemctl restart holdfast-gateway.service")
    bench.until_answered_by("1.0.0")
    assert bench.isolation().degraded == {}
    worker = bench.machine.run(f"cat {WORKER_GROUP}/cgroup.procs").strip()
    assert bench.machine.run(f"ps -o user:20= -p {worker}").strip() == "holdfast-worker"


def test_a_model_past_its_groups_memory_costs_one_fallback_and_no_request(bench: MachineBench) -> None:
    """The kernel kills it, at each blank image anew: each is answered by the release before, until the new one is given up."""
    bench.serve(release("1.1.0", digits_models.allocates_on_some(LARGE_BYTES), requests_min=1000))
    bench.until_answered_by("1.1.0")
    blank = next(
        index for index, image in enumerate(digits_models.images()) if (image == digits_models.blank_images()[0]).all()
    )

    def fell_back() -> bool:
        assert bench.ask(bench.question(blank)) == (200, "1.0.0")
        return bool(bench.events("fell_back"))

    while not fell_back():
        pass  # within the test's own deadline
    assert bench.ask() == (200, "1.0.0")
    assert len(bench.events("fell_back")) == 1
    assert "Memory cgroup out of memory" in bench.machine.run("journalctl --no-pager -k")
    assert bench.service("gateway", "NRestarts") == "0"


def test_a_killed_agent_is_started_again_and_no_application_notices(bench: MachineBench) -> None:
    gateway, agent = bench.service("gateway", "MainPID"), bench.service("agent", "MainPID")
    bench.machine.run("systemctl kill --signal KILL holdfast-agent.service")
    assert bench.ask() == (200, "1.0.0")
    bench.eventually(
        lambda: (
            bench.service("agent", "MainPID") not in ("0", agent) and bench.service("agent", "ActiveState") == "active"
        ),
        "another agent",
    )
    assert bench.service("gateway", "MainPID") == gateway


def test_a_gateway_that_hangs_is_ended_by_the_watchdog_and_who_asks_meanwhile_waits(bench: MachineBench) -> None:
    gateway = bench.service("gateway", "MainPID")
    bench.machine.run(f"kill -STOP {gateway}")
    began = time.monotonic()
    assert bench.ask() == (200, "1.0.0")
    assert time.monotonic() - began > 5, "it did not hang"
    assert bench.service("gateway", "MainPID") != gateway
    assert "Watchdog timeout" in bench.machine.run("journalctl --no-pager -u holdfast-gateway.service")


def test_the_device_rolls_back_without_a_network_and_holds_it_through_a_reboot(bench: MachineBench) -> None:
    bench.serve(release("1.2.0"))
    bench.until_committed("1.2.0")
    bench.broker.stop()
    bench.machine.run(f"{COMMAND} rollback {PIPELINE} --reason 'it sees ghosts' --config {CONFIG}")
    assert bench.ask() == (200, "1.0.0")
    bench.machine.shut_down()
    bench.machine.boot()
    bench.until_answered_by("1.0.0")
    bench.broker.start()
    (told,) = bench.eventually(lambda: bench.events("rolled_back") or None, "a report of it")
    assert "ghosts" in told.detail


def test_uninstalling_leaves_configuration_and_state(bench: MachineBench) -> None:
    bench.machine.run("/root/holdfast/deploy/uninstall")
    assert (
        bench.machine.run("ls /etc/holdfast /var/lib/holdfast; ls -d /opt/holdfast || true").split()[-1]
        != "/opt/holdfast"
    )
    assert "agent.toml" in bench.machine.run("ls /etc/holdfast")
    assert "record" in bench.machine.run("ls -R /var/lib/holdfast")
    bench.machine.fails("systemctl cat holdfast-gateway.service")
