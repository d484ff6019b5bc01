"""The four acts. Each does something through the operator's command or to a process, then waits for what must be observed.

Nothing here sleeps for luck or tries a step again: a miss ends the demo, with `ok: false`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from demonstration import evidence, traffic
from demonstration.digits import BAD, BEST, BETTER, GOOD, PIPELINE
from demonstration.fleet import Device, Provisioned
from demonstration.narration import Narration
from demonstration.operator_command import Operator
from demonstration.processes import Missed, Processes, installed, wait_for
from demonstration.traffic import Application
from holdfast_cli.server import Server

# Deadlines: many times what each takes on two shared cores, so that passing one means that something is wrong.
ROLLOUT_S: Final = 180.0
BACK_S: Final = 90.0
RESTART_S: Final = 60.0
LOOK_S: Final = 0.25
# How a wave is judged in the demo: seconds instead of hours, and requests that a light device gets in a few of them.
WATCHED: Final = ("--soak", "2", "--requests-min", "25", "--deadline", "150")
SEGMENT: Final = "eu-west"


class Cast(NamedTuple):
    """Who and what plays."""

    provisioned: Provisioned
    processes: Processes
    operator: Operator
    server: Server
    broker: str
    releases: Mapping[str, Path]
    applications: Sequence[Application]
    narration: Narration

    def real(self) -> list[Device]:
        return [one for one in self.provisioned.devices if one.kind == "real"]


# ---------------------------------------------------------------- act 1
def good_releases(cast: Cast) -> None:
    """1.0.0 goes out everywhere; 1.1.0 through the waves to 100 %."""
    cast.narration.act("1. A good release goes out, then a better one through the waves")
    _publish(cast, GOOD)
    _roll_out(cast, GOOD, "--wave", "100%")
    _all_serve(cast, GOOD)
    _publish(cast, BETTER)
    found = cast.operator.run("mira", "release", "compare", PIPELINE, GOOD, BETTER)
    accuracy = next(one for one in found["differences"] if one["field"].endswith("accuracy"))
    cast.narration.say(f"accuracy {accuracy['from']} → {accuracy['to']}, on held-out images")
    _roll_out(cast, BETTER)
    _all_serve(cast, BETTER)


# ---------------------------------------------------------------- act 2
def bad_release(cast: Cast) -> dict[str, Any]:
    """1.2.0 passes everything that is checked offline, breaks on live images, and is taken back by itself."""
    cast.narration.act("2. A bad retrain: best of all offline, NaN on one live image in seven")
    before = traffic.total(cast.applications)
    _publish(cast, BAD)
    found = cast.operator.run("mira", "release", "show", PIPELINE, BAD)
    metrics = found["models"][0]["manifest"]["metrics"]
    cast.narration.say(f"its own metrics: accuracy {metrics['accuracy']}; its golden cases pass")
    rollout = _start_rollout(cast, BAD)
    halted = _follow(cast, rollout, until=("halted",))
    cast.narration.good(f"halted in wave {evidence.waves_released(halted)}: {halted['cause']}")
    ended = wait_for(
        "every device that had it is back, by its own signed report",
        lambda: _all_back(cast, rollout),
        within_s=BACK_S,
        every_s=LOOK_S,
    )
    _all_serve(cast, BETTER)
    after = traffic.total(cast.applications)
    cast.narration.good(
        f"back on {BETTER}; applications saw {after.failed - before.failed} failures in {after.sent - before.sent} requests"
    )
    return dict(ended)


# ---------------------------------------------------------------- act 3
def segment_rollback(cast: Cast) -> dict[str, Any]:
    """1.3.0 goes out; one region alone is taken back by an MQTT command that two people signed."""
    cast.narration.act(f"3. 1.3.0 goes out; region {SEGMENT} alone is taken back, by MQTT")
    _publish(cast, BEST)
    _roll_out(cast, BEST, "--wave", "100% ring=canary", "--wave", "20%", "--wave", "100%")
    _all_serve(cast, BEST)
    asked = cast.operator.run(
        "anna", "rollback", PIPELINE, BEST,
        "--segment", f"region={SEGMENT}",
        "--reason", "wrong totals at two shops",
        "--approve-key", str(cast.provisioned.key("ben")),
        "--mqtt", cast.broker,
    )  # fmt: skip
    done = wait_for(
        f"every device of {SEGMENT} is back, by its own signed report",
        lambda: _rollback_done(cast, str(asked["id"])),
        within_s=BACK_S,
        every_s=LOOK_S,
    )
    serving = _serving(cast)
    expected = {region: {BETTER if region == SEGMENT else BEST} for region in serving}
    if {region: set(versions) for region, versions in serving.items()} != expected:
        raise Missed(f"after the rollback regions serve {serving}")
    cast.narration.good(f"{SEGMENT} serves {BETTER}, the other regions still {BEST}")
    return dict(done)


# ---------------------------------------------------------------- act 4
def kills(cast: Cast) -> dict[str, Any]:
    """Both workers in turn, then the agent, die by SIGKILL under traffic: no request fails, and the agent carries on."""
    cast.narration.act("4. Processes die under traffic")
    device = next(one for one in cast.real() if one.region != SEGMENT)
    application = next(one for one in cast.applications if one.device == device.id)
    worker = _kill_workers(cast, device, application)
    agent = _kill_agent(cast, device, application)
    return {"worker": {"failed": worker}, "agent": {"failed": agent}}


def _kill_workers(cast: Cast, device: Device, application: Application) -> int:
    """The serving slot's worker is one of the two; which one the operating system cannot tell, so both die, one by one."""
    before = application.counts
    gateway = psutil.Process(cast.processes.process_id(f"gateway-{device.id}"))
    _both_slots_ready(cast, device, since=0)
    victims = [one.pid for one in gateway.children(recursive=True)]
    for victim in victims:
        killed_at = cast.server.get("status")["now"]
        psutil.Process(victim).kill()
        cast.narration.say(f"SIGKILL to a worker of {device.id} (process {victim})")
        _more_requests(application, 20)
        wait_for(
            "the gateway has started another",
            lambda: len(victims) == len({one.pid for one in gateway.children(recursive=True)} - {victim}),  # noqa: B023 - called before the next turn
            within_s=RESTART_S,
        )
        _both_slots_ready(cast, device, since=killed_at)
    failed = application.counts.failed - before.failed
    cast.narration.good(f"{application.counts.sent - before.sent} requests meanwhile, {failed} failed")
    return failed


def _both_slots_ready(cast: Cast, device: Device, *, since: int) -> None:
    """By a report of the device's that came later."""

    def look() -> bool:
        found = cast.server.get("devices", device.id)
        slots = [pipeline.get(slot) or {} for pipeline in found["pipelines"] for slot in ("current", "previous")]
        return found["last_seen_at"] > since and all(slot.get("ready") for slot in slots)

    wait_for(f"both slots of {device.id} are ready", look, within_s=RESTART_S, every_s=LOOK_S)


def _kill_agent(cast: Cast, device: Device, application: Application) -> int:
    before = application.counts
    cast.processes.kill(f"agent-{device.id}")
    cast.narration.say(f"SIGKILL to the agent of {device.id}")
    _more_requests(application, 40)
    seen = cast.server.get("devices", device.id)["last_seen_at"]
    start_agent(cast.processes, cast.provisioned, device)
    wait_for(
        "the restarted agent's next signed report",
        lambda: cast.server.get("devices", device.id)["last_seen_at"] > seen,
        within_s=RESTART_S,
        every_s=LOOK_S,
    )
    _more_requests(application, 40)
    failed = application.counts.failed - before.failed
    cast.narration.good(
        f"{application.counts.sent - before.sent} requests meanwhile, {failed} failed; it reports again"
    )
    return failed


def start_agent(processes: Processes, provisioned: Provisioned, device: Device) -> None:
    """Start, or start again, a real device's agent."""
    configuration = provisioned.configuration(device.id)
    processes.start(f"agent-{device.id}", [installed("holdfast-agent"), "run", "--config", configuration])


# ---------------------------------------------------------------- steps
def _publish(cast: Cast, version: str) -> None:
    cast.operator.run("mira", "publish", str(cast.releases[version]))


def _start_rollout(cast: Cast, version: str, *waves: str) -> str:
    planned = cast.operator.run("anna", "rollout", "plan", PIPELINE, version, *waves, *WATCHED)
    for wave in planned["waves"]:
        where = ", ".join([*wave["regions"], *(f"{k}={v}" for k, v in wave["labels"].items())]) or "all regions"
        cast.narration.say(f"  wave {wave['number']}: {wave['share'] / 100:g} % of {where}: {wave['cohort']} devices")
    cast.operator.run("anna", "rollout", "start", planned["id"])
    return str(planned["id"])


def _roll_out(cast: Cast, version: str, *waves: str) -> None:
    rollout = _start_rollout(cast, version, *waves)
    found = _follow(cast, rollout, until=("finished",))
    took = (found["ended_at"] - found["started_at"]) / 1e6
    cast.narration.good(f"{PIPELINE} {version}: {len(found['waves'])} wave(s) passed in {took:.1f} s")


def _follow(cast: Cast, rollout: str, *, until: Sequence[str]) -> Any:
    passed = 0

    def look() -> Any:
        nonlocal passed
        cast.processes.check()
        found = cast.server.get("rollouts", rollout)
        waves = found["waves"]
        now_passed = sum(wave["state"] == "passed" for wave in waves)
        if now_passed > passed:
            passed = now_passed
            cast.narration.say(f"  wave {passed} passed: {waves[passed - 1]['why']}")
        if found["state"] in until:
            return found
        if found["state"] not in ("running", "planned"):
            raise Missed(f"{rollout} is {found['state']}: {found['cause']}")
        number = evidence.waves_released(found)
        cast.narration.moving(f"wave {number}: {waves[number - 1]['why'] if number else ''}")
        return None

    return wait_for(f"{rollout} is {' or '.join(until)}", look, within_s=ROLLOUT_S, every_s=LOOK_S)


def _serving(cast: Cast) -> dict[str, dict[str, int]]:
    """By region, how many devices say that they serve which version."""
    regions = cast.server.get("fleet")["pipelines"].get(PIPELINE, {})
    return {region: dict(counts["serving"]) for region, counts in regions.items()}


def _all_serve(cast: Cast, version: str) -> None:
    total = len(cast.provisioned.devices)

    def look() -> bool:
        serving = _serving(cast)
        count = sum(counts.get(version, 0) for counts in serving.values())
        cast.narration.moving(f"{count} of {total} devices serve {version}")
        return count == total

    wait_for(f"all {total} devices serve {version}", look, within_s=BACK_S, every_s=LOOK_S)
    cast.narration.good(f"all {total} devices serve {version}, by their own signed reports")


def _all_back(cast: Cast, rollout: str) -> Any:
    found = cast.server.get("rollouts", rollout)
    back = [one["back_at_monotonic_us"] is not None for one in found["returned"]]
    cast.narration.moving(f"{sum(back)} of {len(back)} devices are back")
    return found if back and all(back) else None


def _rollback_done(cast: Cast, rollback: str) -> Any:
    found = cast.server.get("rollbacks", rollback)
    cast.narration.moving(f"{found['devices_back']} of {found['devices_before']} devices are back")
    return found if found["devices_before"] and found["devices_back"] == found["devices_before"] else None


def _more_requests(application: Application, count: int) -> None:
    """Until so many more requests have been answered: what was done to the device has been felt."""
    target = application.counts.sent + count
    wait_for(
        f"{count} more requests at {application.device}",
        lambda: application.counts.sent >= target,
        within_s=RESTART_S,
    )
