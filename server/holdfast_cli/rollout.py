"""`holdfast rollout`: moving a segment to a release, wave by wave, through gates."""

from __future__ import annotations

from typing import Any, Final

import click

from holdfast_cli import output, signed_command, time_windows, watch, waves
from holdfast_cli.session import Session, reads, signs
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.command import (
    Act,
    RolloutAbort,
    RolloutPause,
    RolloutPlan,
    RolloutResume,
    RolloutStart,
    ShadowPlan,
)


@click.group
def rollout() -> None:
    """Plan, start, watch and stop rollouts."""


@rollout.command("plan")
@click.argument("pipeline")
@click.argument("version")
@click.option(
    "--segment", default="*", show_default=True, help="Which devices, such as 'site in (a, b), ring!=canary'."
)
@click.option(
    "--wave", "wave_texts", multiple=True, metavar="SHARE[ SELECTOR]",
    help="One step, in order: '5%' or '100% region in (eu-west, us-east), ring=canary'. "
    "With 'requests=5%' at its end those devices give the release 5% of their requests. "
    "Default: ring=canary, then 1%, 5%, 20%, 100% of all regions.",
)  # fmt: skip
@click.option(
    "--request-shares", metavar="SHARE,…",
    help="Instead of waves of devices: the shares of requests that all of them give the release, one wave each, "
    "such as '1%,5%,20%,100%'. A rollout ends with all requests, asked for or not.",
)  # fmt: skip
@click.option(
    "--request-segment", metavar="SELECTOR",
    help="Which requests these are shares of, by the requests' own parameters: 'tier=beta'. Default: all.",
)  # fmt: skip
@click.option(
    "--gate", "gate_texts", multiple=True, metavar="METRIC=THRESHOLD",
    help="A condition for going on: latency_ms_p99=50, error_rate=0.01, null_rate=0.01. Default: the server's.",
)  # fmt: skip
@click.option("--devices-min", type=click.IntRange(1), help="Devices that must reach a verdict in each wave.")
@click.option("--requests-min", type=click.IntRange(1), help="Requests of a device before it counts.")
@click.option(
    "--soak", "soak_s", type=click.IntRange(0), metavar="SECONDS", help="How long each wave is watched at least."
)
@click.option(
    "--deadline", "deadline_s", type=click.IntRange(1), metavar="SECONDS", help="How long a wave may take at most."
)
@click.option(
    "--environment",
    metavar="ENVIRONMENT",
    help="What to run it in: system, NAME@VERSION or a digest. Default: the release's first.",
)
@click.option(
    "--download-window", "download_windows", multiple=True, metavar="[DAYS ]HH:MM-HH:MM",
    help="When devices may download, by their own clocks: '22:00-04:00' or 'Sat,Sun 00:00-00:00'. Default: at any time.",
)  # fmt: skip
@click.option(
    "--switch-window", "switch_windows", multiple=True, metavar="[DAYS ]HH:MM-HH:MM",
    help="When devices may begin to switch; a rollback never waits for it. Default: at any time.",
)  # fmt: skip
@click.option(
    "--spread", "spread_s", type=click.IntRange(1), metavar="SECONDS",
    help="Over how long the devices of a wave begin, each at its own moment. Default: all at once.",
)  # fmt: skip
@click.option(
    "--shadow", is_flag=True, help="The release only shadows what serves: it answers nobody, and ends with it."
)
@click.option(
    "--agreement", type=click.FloatRange(0, 1, min_open=True), help="With --shadow: of rows, that must agree."
)
@click.option("--rows-min", type=click.IntRange(1), help="With --shadow: rows of a device before it counts.")
@click.option("--hours-min", type=click.IntRange(0), help="With --shadow: hours that a device must tell of.")
@click.option("--start", "start_too", is_flag=True, help="Start it at once.")
@signs
@click.pass_obj
def plan(session: Session, /, **told: Any) -> None:
    """Plan a rollout of VERSION of PIPELINE. Nothing moves before `rollout start`.

    \b
    Examples:
      holdfast rollout plan digits 1.1.0 --key anna.pem
      holdfast rollout plan digits 1.1.0 --wave '100% ring=canary' --wave 10% --wave 100% --gate latency_ms_p99=50
      holdfast rollout plan digits 1.1.0 --request-shares 1%,5%,20%,100% --request-segment tier=beta
      holdfast rollout plan digits 1.1.0 --wave '100% ring=canary, requests=5%' --wave '100% ring=canary' --wave 100%
    """
    act = signed_command.checked(
        RolloutPlan,
        pipeline=told["pipeline"],
        version=told["version"],
        segment=waves.segment(told["segment"]),
        waves=waves.waves(told["wave_texts"], told["request_shares"]),
        requests=waves.request_segment(told["request_segment"]),
        gates=tuple(waves.gate(text) for text in told["gate_texts"]),
        windows=time_windows.windows(told["download_windows"], told["switch_windows"]),
        shadow=_shadow(told),
        **{
            name: told[name]
            for name in ("devices_min", "requests_min", "soak_s", "deadline_s", "environment", "spread_s")
        },
    )
    planned = _send(session, act)
    if told["start_too"]:
        planned = _send(session, RolloutStart(rollout=planned["id"]))
    _show(session, planned)
    if not session.as_json and not told["start_too"]:
        click.echo(f"Next: holdfast rollout start {output.plain(planned['id'])}")


@rollout.command("start")
@click.argument("rollout_id", metavar="ROLLOUT")
@signs
@click.pass_obj
def start(session: Session, rollout_id: str) -> None:
    """Start a planned rollout: its first wave is released."""
    _show(session, _send(session, signed_command.checked(RolloutStart, rollout=rollout_id)))


@rollout.command("pause")
@click.argument("rollout_id", metavar="ROLLOUT")
@signs
@click.pass_obj
def pause(session: Session, rollout_id: str) -> None:
    """Pause: devices that have the release keep it, no others get it."""
    _show(session, _send(session, signed_command.checked(RolloutPause, rollout=rollout_id)))


@rollout.command("resume")
@click.argument("rollout_id", metavar="ROLLOUT")
@signs
@click.pass_obj
def resume(session: Session, rollout_id: str) -> None:
    """Go on with a paused rollout."""
    _show(session, _send(session, signed_command.checked(RolloutResume, rollout=rollout_id)))


@rollout.command("abort")
@click.argument("rollout_id", metavar="ROLLOUT")
@signs
@click.pass_obj
def abort(session: Session, rollout_id: str) -> None:
    """End a rollout for good, without condemning the release."""
    _show(session, _send(session, signed_command.checked(RolloutAbort, rollout=rollout_id)))


@rollout.command("status")
@click.argument("rollout_id", metavar="[ROLLOUT]", required=False)
@click.option("--pipeline", help="Of this pipeline only.")
@reads
@click.pass_obj
def status(session: Session, rollout_id: str | None, pipeline: str | None) -> None:
    """List rollouts, or show one with its waves and gates."""
    if rollout_id is not None:
        _show(session, session.server.get("rollouts", rollout_id))
        return
    found = session.server.get("rollouts", pipeline=pipeline)
    if session.as_json:
        output.as_json(found)
        return
    output.table(
        ("rollout", "pipeline", "release", "segment", "state", "waves passed", "cause"),
        [
            (
                item["id"],
                item["pipeline"],
                item["release"]["version"],
                signed_command.segment_text(item["segment"]),
                item["state"],
                f"{sum(wave['state'] == 'passed' for wave in item['waves'])} of {len(item['waves'])}",
                item.get("cause"),
            )
            for item in found["rollouts"]
        ],
    )


@rollout.command("watch")
@click.argument("rollout_id", metavar="ROLLOUT")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give up after this long.",
)
@reads
@click.pass_context
def watch_(context: click.Context, rollout_id: str, timeout_s: float | None) -> None:
    """Watch a rollout live until it ends. Exit code 0: finished; 3: halted or aborted.

    With --json: one object for each change.
    """
    context.exit(watch.watch(context.ensure_object(Session), rollout_id, timeout_s=timeout_s))


def _shadow(told: dict[str, Any]) -> ShadowPlan | None:
    asked = {field: told[option] for option, field in _SHADOW.items() if told[option] is not None}
    if told["shadow"]:
        return signed_command.checked(ShadowPlan, **asked)
    if asked:
        raise Malformed("it says how a shadow is judged", field="--shadow", next_step="add --shadow, or leave it out")
    return None


_SHADOW: Final = {"agreement": "agreement_min", "rows_min": "rows_min", "hours_min": "hours_min"}


def _send(session: Session, act: Act) -> Any:
    key = session.key()
    return signed_command.send(session, signed_command.envelope(act, fleet=session.server.fleet(), keys=[key]))


def _show(session: Session, found: Any) -> None:
    if session.as_json:
        output.as_json(found)
        return
    click.echo("\n".join(watch.drawn(found)))
