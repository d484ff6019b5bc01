"""`./scripts/demo`: sets the stage, plays the story, checks what was expected of it, and says so in one summary."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from demonstration import evidence, expectations, stage, story, traffic
from demonstration.digits import BEST, BETTER
from demonstration.narration import Narration
from demonstration.processes import Missed, Processes, wait_for
from demonstration.story import Cast
from holdfast_cli.failures import Refused, Unreachable

LIGHT_DEFAULT: Final = 300


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--once", is_flag=True, help="End by itself, and leave nothing running.")
@click.option("--json", "as_json", is_flag=True, help="Print one summary object as the last line of standard output.")
@click.option("--light", type=click.IntRange(30, 3000), default=LIGHT_DEFAULT, show_default=True, help="Light devices.")
@click.option("--keep", is_flag=True, help="Keep the folder with every process's log and disk.")
def main(*, once: bool, as_json: bool, light: int, keep: bool) -> None:
    """A fleet on this machine: a server, a broker, six real devices and light ones, real traffic, and four acts."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    narration = Narration(to_stderr=as_json)
    processes = Processes(folder / "logs")
    summary: dict[str, Any] = {"ok": False}
    try:
        summary = _play(folder, processes, narration, light=light, stay=not once)
    except (Missed, Refused, Unreachable) as error:
        narration.bad(str(error))
        summary["missed"] = [str(error)]
    except KeyboardInterrupt:
        narration.say("stopping")
    finally:
        left = processes.stop_all()
        if left:
            summary |= {"ok": False, "left_running": left}
        if keep or (not summary["ok"] and "missed" in summary):
            narration.say(f"kept for looking at: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print(json.dumps(summary), flush=True)
    sys.exit(0 if summary["ok"] else 1)


def _play(folder: Path, processes: Processes, narration: Narration, *, light: int, stay: bool) -> dict[str, Any]:
    began = time.monotonic()
    cast = stage.build(folder, processes, narration, light=light)
    story.good_releases(cast)
    halted = story.bad_release(cast)
    taken_back = story.segment_rollback(cast)
    killed = story.kills(cast)
    if not stay:
        _end_traffic(cast)
    summary = _summarise(cast, folder, halted, taken_back, killed) | {"seconds": round(time.monotonic() - began, 1)}
    _tell(cast, summary)
    if stay:
        _stay(cast, summary)
        _end_traffic(cast)
    return summary


def _end_traffic(cast: Cast) -> None:
    """Stop the applications, and wait for the reports that hold their last requests."""
    for application in cast.applications:
        application.stop()
    since = cast.server.get("status")["now"]
    wait_for(
        "every real device's last report",
        lambda: all(cast.server.get("devices", one.id)["last_seen_at"] > since for one in cast.real()),
        within_s=story.RESTART_S,
        every_s=story.LOOK_S,
    )


def _summarise(
    cast: Cast, folder: Path, halted: Mapping[str, Any], taken_back: Mapping[str, Any], killed: Mapping[str, Any]
) -> dict[str, Any]:
    database = stage.server_database(folder)
    segment: set[str] = {one.id for one in cast.provisioned.devices if one.region == story.SEGMENT}
    best = cast.server.get("releases", "digits", BEST)["digest"]
    counts = traffic.total(cast.applications)
    summary: dict[str, Any] = {
        "ok": True,
        "requests": {
            "sent": counts.sent,
            "failed": counts.failed,
            "failed_over": evidence.failed_over(database, cast.real()),
        },
        "bad_release": evidence.bad_release(cast.provisioned, database, halted),
        "segment_rollback": evidence.segment_rollback(cast.provisioned, taken_back, segment, best),
        "kills": dict(killed),
        "gateways": {one.device: one.address for one in cast.applications},
        "server": cast.server.address,
    }
    missed = expectations.missed(
        summary,
        segment_devices=len(segment),
        serving=evidence.serving(cast.provisioned),
        wanted={one.id: BETTER if one.id in segment else BEST for one in cast.provisioned.devices},
    )
    missed += [text for one in cast.applications for text in one.failures]
    return summary | ({"ok": False, "missed": missed} if missed else {})


def _tell(cast: Cast, summary: Mapping[str, Any]) -> None:
    bad, back, requests = summary["bad_release"], summary["segment_rollback"], summary["requests"]
    cast.narration.act("What was seen")
    cast.narration.say(
        f"{requests['sent']} requests at {len(cast.applications)} gateways: {requests['failed']} failed, "
        f"{requests['failed_over']} answered by the other slot"
    )
    cast.narration.say(
        f"{bad['version']}: devices fell back by themselves {bad['local_fallback_ms']} ms after the first bad answer (median); "
        f"halted {bad['breach_to_halt_s']} s after it; the fleet was back {bad['halt_to_fleet_back_s']} s later"
    )
    cast.narration.say(
        f"{bad['activated']} of {bad['cohort']} devices of the cohort ever activated it, {bad['outside_cohort']} outside it"
    )
    cast.narration.say(
        f"the segment's {back['devices']} devices were back within {back['p50_s']} s (median), {back['max_s']} s (last)"
    )
    for text in summary.get("missed", ()):
        cast.narration.bad(text)
    if summary["ok"]:
        cast.narration.good(f"everything that was expected came true, in {summary['seconds']} s")


def _stay(cast: Cast, summary: Mapping[str, Any]) -> None:
    """Until Ctrl-C; traffic goes on."""
    gateway = next(iter(summary["gateways"].values()))
    keys = cast.provisioned.folder / "keys"
    cast.narration.act("It stays up until Ctrl-C. Try:")
    for line in (
        f"the page           {cast.server.address}/",
        f"a device's gateway curl {gateway}/v2/models/digits",
        f"the command        export PATH={Path(sys.executable).parent}:$PATH",
        f"                   export HOLDFAST_SERVER={cast.server.address} HOLDFAST_KEY={keys}/anna.pem",
        "                   holdfast fleet; holdfast rollout status; holdfast decisions",
        "                   holdfast rollback digits 1.3.0 --segment region=us-east --reason 'to try it'",
        f"                   holdfast approve b-… --key {keys}/ben.pem",
    ):
        cast.narration.say(line)
    try:
        while True:  # ends by Ctrl-C, or when a process of the fleet ends
            cast.processes.check()
            time.sleep(1)
    except KeyboardInterrupt:
        cast.narration.say("stopping")


if __name__ == "__main__":
    main()
