"""What an operator's signed command does to rollouts and rollbacks. One function for both doors, HTTP and MQTT.

The door has verified the signatures, the time, and that the command's id is new; here is what it means. All of it happens in
the caller's transaction: a refusal changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, assert_never

import msgspec
from sqlalchemy import Connection

from holdfast_server.audit import decisions
from holdfast_server.core import planner, request_shares, shadow_first
from holdfast_server.core import rollback as rollback_rules
from holdfast_server.core import rollout as machine
from holdfast_server.core.base_rules import releases_in
from holdfast_server.core.compose import check_room
from holdfast_server.core.plan import Plan
from holdfast_server.core.release_in import ReleaseIn, Taken, in_environment
from holdfast_server.core.rollback import Rollback, Signers
from holdfast_server.core.rollout import Moment
from holdfast_server.core.segments import Match, check_known, check_size, conjunction
from holdfast_server.core.standing import (
    Standing,
    after_rollback,
    check_free,
    destination,
    other_environment,
    with_previous,
)
from holdfast_server.registry import fitting
from holdfast_server.registry.manifests import stored_release
from holdfast_server.rollouts import storage, views
from holdfast_server.rollouts.context import Context
from holdfast_server.rollouts.enactment import enact, enact_step
from holdfast_server.rollouts.fleet import Fleet, members
from holdfast_server.store import changes, devices
from holdfast_shared import selector, signing, strict_json
from holdfast_shared.errors import Malformed, Untrusted
from holdfast_shared.wire import command as wire
from holdfast_shared.wire.assignment import ReleaseRef
from holdfast_shared.wire.release import ENVELOPE_BYTES_MAX, RELEASE_TYPE, Release

# Of the random command id, as much as people can read to each other; a taken one gets more of it.
_ID_LENGTH = 8


def execute(
    connection: Connection,
    context: Context,
    command: wire.Command,
    payload_digest: str,
    signer_key_ids: Iterable[str],
) -> dict[str, Any]:
    """Do it, and return the rollout or the rollback as the API shows it. Raises HoldfastError, having changed nothing."""
    now = context.now()
    people = _people(context, signer_key_ids)
    act = command.act
    match act:
        case wire.RolloutPlan():
            return _plan(connection, context, act, command.id, _operator(people), now)
        case wire.RolloutStart():
            return _start(connection, context, act.rollout, _operator(people), now)
        case wire.RolloutPause():
            return _step(connection, context, act.rollout, machine.Pause(by=_operator(people)), now)
        case wire.RolloutResume():
            return _step(connection, context, act.rollout, machine.Resume(by=_operator(people)), now)
        case wire.RolloutAbort():
            return _step(connection, context, act.rollout, machine.Abort(by=_operator(people)), now)
        case wire.Rollback():
            return _rollback(connection, context, act, command.id, payload_digest, people, now)
        case wire.Approve():
            return _approve(connection, context, act, people, now)
        case _:
            assert_never(act)


def _people(context: Context, key_ids: Iterable[str]) -> Signers:
    """The names behind the keys, by role."""
    known = frozenset(key_ids)
    operators, approvers = context.authorities.operator_keys(), context.authorities.approver_keys()
    return Signers(
        operators=frozenset(context.authorities.name_of(key) for key in known & operators.keys()),
        approvers=frozenset(context.authorities.name_of(key) for key in known & approvers.keys()),
    )


def _operator(people: Signers) -> str:
    if not people.operators:
        raise Untrusted("an operator must sign this", field="signatures", next_step="sign it with an operator's key")
    return min(people.operators)


def _new_id(connection: Connection, kind: str, command_id: str) -> str:
    length = _ID_LENGTH
    while storage.is_taken(connection, f"{kind}-{command_id[:length]}") and length < len(command_id):
        length += _ID_LENGTH
    return f"{kind}-{command_id[:length]}"


# ---------------------------------------------------------------- rollouts
def _plan(
    connection: Connection, context: Context, act: wire.RolloutPlan, command_id: str, by: str, now: Moment
) -> dict[str, Any]:
    ref, envelope = storage.release(connection, act.pipeline, act.version, field="version")
    payload = signing.unverified_payload(envelope, RELEASE_TYPE, size_bytes_max=ENVELOPE_BYTES_MAX)
    release = strict_json.decode(payload, Release, what="release", size_bytes_max=ENVELOPE_BYTES_MAX)
    storage.check_requirements(connection, release)
    standing = storage.standing(connection, act.pipeline)
    environment = storage.environment(connection, act.environment, field="environment")
    made = planner.plan(
        msgspec.structs.replace(act, environment=environment),
        rollout=_new_id(connection, "r", command_id),
        release=release,
        digest=ref.digest,
        fleet=members(
            connection,
            act.pipeline,
            asked=fitting.needs(connection, ref.digest, environment or release.environments[0]),
            now=now.at,
        ),
    )
    made = with_previous(standing, made)
    request_shares.check_others_are_answered(made)
    check_free(standing, made)
    shadowed = _shadowed(connection, context, made)
    record = machine.planned(made, by=by, now=now)
    check_room(standing, record, devices.regions(connection))
    storage.save_rollout(connection, record)
    decisions.record(
        connection,
        moment=now,
        kind="rollout planned",
        subject=record.id,
        cause=f"planned by {by}: {made.pipeline} {ref.version} for {selector.written(made.segment)}",
        evidence={"plan": made, **({"shadowed": shadowed} if shadowed else {})},
    )
    changes.mark(connection, "rollouts")
    return views.rollout(connection, record.id)


def _shadowed(connection: Connection, context: Context, plan: Plan) -> tuple[str, ...]:
    """The rollouts by which it may serve where it must have shadowed first. Raises Conflict without any."""
    return shadow_first.evidence(plan, context.shadow_first, storage.rollouts(connection, pipeline=plan.pipeline))


def _start(connection: Connection, context: Context, rollout_id: str, by: str, now: Moment) -> dict[str, Any]:
    """Everything that could have changed since it was planned is asked again."""
    record = storage.rollout(connection, rollout_id)
    if record.state is machine.State.PLANNED:
        standing = storage.standing(connection, record.plan.pipeline)
        check_free(standing, record.plan)
        check_room(standing, record, devices.regions(connection))
        record = msgspec.structs.replace(record, plan=with_previous(standing, record.plan))
        request_shares.check_others_are_answered(record.plan)
        _shadowed(connection, context, record.plan)
    enact_step(connection, context, machine.step(record, machine.Start(by=by), now), now)
    return views.rollout(connection, rollout_id)


def _step(
    connection: Connection, context: Context, rollout_id: str, event: machine.Event, now: Moment
) -> dict[str, Any]:
    enact_step(connection, context, machine.step(storage.rollout(connection, rollout_id), event, now), now)
    return views.rollout(connection, rollout_id)


# ---------------------------------------------------------------- rollbacks
def _rollback(
    connection: Connection,
    context: Context,
    act: wire.Rollback,
    command_id: str,
    payload_digest: str,
    people: Signers,
    now: Moment,
) -> dict[str, Any]:
    _check_environment_named(act)
    by = rollback_rules.requester(people)
    release, envelope = storage.release(connection, act.pipeline, act.version, field="version")
    environment = storage.environment(connection, act.environment, field="environment")
    taken = Taken(release=None if act.every_version else release, environment=environment)
    fleet = Fleet()
    fleet.refresh(connection)
    segment = _inhabited(act.segment, fleet)
    standing = storage.standing(connection, act.pipeline)
    to = _to(connection, standing, segment, act, release, envelope)
    record = Rollback(
        id=_new_id(connection, "b", command_id),
        pipeline=act.pipeline,
        release=release,
        segment=segment,
        reason=act.reason,
        requested_by=by,
        request=payload_digest,
        requested_at=now.at,
        to=destination(standing, segment, taken, to),
        environment=environment,
        every_version=act.every_version,
    )
    record = _with_all_that_go_on(connection, standing, record)
    _decide(connection, record, "rollback requested", f"asked for by {by}: {act.reason}", now)
    second = rollback_rules.second_person(people, by)
    if second is not None:
        return _accept(connection, context, record, second, fleet, now)
    storage.save_rollback(connection, record)
    changes.mark(connection, "rollbacks")
    return views.rollback(connection, record.id)


def _inhabited(asked: selector.Selector, fleet: Fleet) -> Match:
    """The segment that was asked for. Raises Malformed when no device is in it, or when it has a typo."""
    check_size(asked, field="segment")
    labels = [one.labels for one in fleet.devices.values()]
    check_known(asked, labels, field="segment")
    segment = conjunction(asked)
    if segment is None or not any(selector.holds(segment, one) for one in labels):
        raise Malformed(
            f"no device is in the segment {selector.written(asked)}",
            field="segment",
            next_step="look at: holdfast device list 'SEGMENT'",
        )
    return segment


def _check_environment_named(act: wire.Rollback) -> None:
    """Raises Malformed where something is said of an environment and none is taken back."""
    if act.environment is None and act.to_environment is not None:
        raise Malformed(
            "it says where an environment goes back to, and none is taken back",
            field="to_environment",
            next_step="name `environment`, or leave it out",
        )
    if act.environment is None and act.every_version:
        raise Malformed(
            "it takes an environment back from every version, and names none",
            field="every_version",
            next_step="name `environment`, or leave it out",
        )


def _to(
    connection: Connection, standing: Standing, segment: Match, act: wire.Rollback, ref: ReleaseRef, envelope: bytes
) -> ReleaseIn | None:
    """Where to, as far as it was said or follows from what was; None: what the segment ran before. Raises HoldfastError."""
    environment = storage.environment(connection, act.environment, field="environment")
    if environment is not None:
        if act.to is not None:
            raise Malformed(
                "an environment is taken back and the version stays",
                field="to",
                next_step="say `to_environment`, or leave `environment` out to take the version back",
            )
        release = stored_release(envelope)
        if environment not in release.environments:
            raise Malformed(
                f"{release.version} was not validated in {environment}, so it runs nowhere in it",
                field="environment",
                next_step=f"name one of {', '.join(release.environments)}",
            )
        wanted = storage.environment(connection, act.to_environment, field="to_environment")
        return other_environment(standing, segment, in_environment(ref, environment), release, wanted)
    if act.to is None:
        return None
    ref, goal = storage.release(connection, act.pipeline, act.to, field="to")
    return _known_good(connection, standing, act.pipeline, ref, stored_release(goal))


def _with_all_that_go_on(connection: Connection, standing: Standing, record: Rollback) -> Rollback:
    """Saying where the other releases go on that the segment has now in an environment that every version leaves.

    There where the named one does, if they can; else as before. Raises Malformed when one can nowhere.
    """
    if not record.every_version:
        return record
    also = []
    for one in releases_in(standing.base, record.segment):
        if record.taken.holds(one) and one.digest != record.release.digest:
            release = stored_release(storage.release(connection, record.pipeline, one.version, field="environment")[1])
            same = in_environment(one.ref, record.to.environment)
            may = same.environment in release.environments and not standing.condemnation_of(same, record.segment)
            wanted = same.environment if may else None
            also.append(other_environment(standing, record.segment, one, release, wanted))
    return msgspec.structs.replace(record, also=tuple(also))


def _known_good(
    connection: Connection, standing: Standing, pipeline: str, to: ReleaseRef, release: Release
) -> ReleaseIn:
    """In the environment that it did well in. Raises Malformed for a release that never passed.

    A rollback asks for no trial and no gate, so it is not for new ones.
    """
    finished = storage.rollouts(connection, pipeline=pipeline, states=(machine.State.FINISHED,))
    replaced = [rule.standby for rule in standing.base if rule.standby is not None]
    known = [one.plan.release for one in finished] + [rule.release for rule in standing.base] + replaced
    good = next((one for one in known if one.digest == to.digest), None)
    if good is None and known:
        versions = ", ".join(dict.fromkeys(one.version for one in known))
        raise Malformed(
            f"{to.version} never finished a rollout, so nobody knows that it is good",
            field="to",
            next_step=f"go back to one of {versions}, or plan a rollout: holdfast rollout plan {pipeline} {to.version}",
        )
    return good or in_environment(to, release.environments[0])


def _approve(
    connection: Connection, context: Context, act: wire.Approve, people: Signers, now: Moment
) -> dict[str, Any]:
    record = storage.rollback(connection, act.rollback)
    rollback_rules.check_request(record, act.request)
    if not people.approvers:
        raise Untrusted("an approver must sign this", field="signatures", next_step="sign it with an approver's key")
    rollback_rules.check_waiting(record, now.at)
    second = rollback_rules.second_person(people, record.requested_by) or record.requested_by
    standing = storage.standing(connection, record.pipeline)
    destination(standing, record.segment, record.taken, record.to)
    record = _with_all_that_go_on(connection, standing, record)  # one may have come since it was asked for
    fleet = Fleet()
    fleet.refresh(connection)
    return _accept(connection, context, record, second, fleet, now)


def _accept(
    connection: Connection, context: Context, record: Rollback, by: str, fleet: Fleet, now: Moment
) -> dict[str, Any]:
    serving = tuple(
        sorted(
            one.device
            for one in fleet.devices.values()
            if selector.holds(record.segment, one.labels)
            and (serving := one.serving(record.pipeline)) is not None
            and record.taken.holds(serving)
        )
    )
    done = rollback_rules.accepted(record, by=by, at=now.at, monotonic_us=now.monotonic_us, devices=serving)
    before = storage.standing(connection, record.pipeline)
    after, steps = after_rollback(before, done, now)
    storage.save_rollback(connection, done)
    documents = enact(connection, context, record.pipeline, before, after, steps, now)
    accepted = f"asked for by {done.requested_by}, approved by {by}: {done.reason}"
    _decide(connection, done, "rollback accepted", accepted, now, **documents)
    changes.mark(connection, "rollbacks")
    return views.rollback(connection, record.id)


def _decide(connection: Connection, record: Rollback, what: str, why: str, now: Moment, **more: list[str]) -> None:
    decisions.record(
        connection,
        moment=now,
        kind=what,
        subject=record.id,
        cause=why,
        evidence={
            "pipeline": record.pipeline,
            "release": record.release,
            "environment": record.environment,
            "every_version": record.every_version,
            "to": record.to,
            "also": record.also,
            "segment": selector.written(record.segment),
            "request": record.request,
            "devices": record.returning.devices,
            **more,
        },
    )


def refuse_overdue(connection: Connection, now: Moment) -> None:
    """Requests that nobody approved in time, refused for good."""
    for record in storage.rollbacks(connection, states=(rollback_rules.State.WAITING,)):
        if rollback_rules.overdue(record, now.at):
            done = rollback_rules.refused(record, "nobody approved it in time")
            storage.save_rollback(connection, done)
            _decide(connection, done, "rollback refused", done.why, now)
            changes.mark(connection, "rollbacks")
