"""Every stable code that a device says in a report: what happened, who must act, what to do, and what follows by itself.

The one list. The device condemns by it, the server's authority is taken from it, and `agent/FAILURES.md` is printed from it:
`python -m holdfast_shared.failure_codes`. A code never changes its meaning; what is new gets a new one.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Final, NamedTuple


class FailureCode(StrEnum):
    GUARDRAIL_LATENCY = "guardrail-latency"
    GUARDRAIL_ERROR_RATE = "guardrail-error-rate"
    GUARDRAIL_NULL_RATE = "guardrail-null-rate"
    GUARDRAIL_ACCURACY = "guardrail-accuracy"
    GUARDRAIL_DRIFT = "guardrail-drift"
    GUARDRAIL_MEMORY = "guardrail-memory"
    CRASH = "crash"
    HANG = "hang"
    CRASH_LOOP = "crash-loop"
    HANG_LOOP = "hang-loop"
    BOOT_LOOP = "boot-loop"
    LOAD_FAILED = "load-failed"
    LOAD_DEADLINE = "load-deadline"
    SELF_TEST_FAILED = "self-test-failed"
    SELF_TEST_UNANSWERED = "self-test-unanswered"
    DAMAGED_BLOB = "damaged-blob"
    NOT_SUPPORTED = "not-supported"
    UNFIT = "unfit"
    FETCH_UNREACHABLE = "fetch-unreachable"
    FETCH_REFUSED = "fetch-refused"
    FETCH_UNTRUSTED = "fetch-untrusted"
    FETCH_DAMAGED = "fetch-damaged"
    FETCH_TOO_SLOW = "fetch-too-slow"
    NO_SPACE = "no-space"
    NO_MEMORY = "no-memory"
    HELD_UP = "held-up"
    UNREADABLE = "unreadable"
    OVER_BUDGET = "over-budget"
    OUTSIDE_WINDOW = "outside-window"
    REQUIREMENT_UNMET = "requirement-unmet"
    CONDEMNED = "condemned"
    LOCAL_ROLLBACK = "local-rollback"
    UNCONFIRMED = "unconfirmed"
    UNPROVEN = "unproven"
    MALFORMED = "malformed"
    UNTRUSTED = "untrusted"
    EQUIVOCATION = "equivocation"
    TOO_MANY_PIPELINES = "too-many-pipelines"


class Actor(StrEnum):
    """Who must act, if it does not pass by itself."""

    NOBODY = "nobody"
    PUBLISHER = "publisher"
    OPERATOR = "operator"
    SITE = "whoever looks after the device"


class Meaning(NamedTuple):
    """`condemns`: the device condemns the pair here. `objective`: the release's own conduct, on which a server may act alone."""

    happened: str
    actor: Actor
    do: str
    condemns: bool = False
    objective: bool = False


_C: Final = FailureCode
MEANINGS: Final[dict[FailureCode, Meaning]] = {
    _C.GUARDRAIL_LATENCY: Meaning(
        "more of its requests were slower than the release's guardrail allows than chance explains",
        Actor.PUBLISHER,
        "measure the model on this hardware; publish a smaller one, or a threshold that this hardware can keep",
        condemns=True,
        objective=True,
    ),
    _C.GUARDRAIL_ERROR_RATE: Meaning(
        "more of its requests raised, crashed or hung than the release's guardrail allows",
        Actor.PUBLISHER,
        "read the details of its worker_lost events and the gateway's log; publish a version that copes with that input",
        condemns=True,
        objective=True,
    ),
    _C.GUARDRAIL_NULL_RATE: Meaning(
        "more of its answers were null (empty, not finite, the sentinel) than the release's guardrail allows",
        Actor.PUBLISHER,
        "look for divisions and logarithms in preprocessing; publish a version that answers on live input",
        condemns=True,
        objective=True,
    ),
    _C.GUARDRAIL_ACCURACY: Meaning(
        "of the predictions whose true class an application told, fewer were right than the release's guardrail asks for",
        Actor.PUBLISHER,
        "compare the labels with what the release was evaluated on; publish a version that is right on them",
        condemns=True,
        objective=True,
    ),
    _C.GUARDRAIL_DRIFT: Meaning(
        "what the release is asked, or answers, moved away from its publisher's reference in two windows in a row",
        Actor.PUBLISHER,
        "look at the device's input first: a lens, a sensor, a season; if it is right, publish a version that knows it",
    ),
    _C.GUARDRAIL_MEMORY: Meaning(
        "its worker held more memory, in two measurements in a row, than the release's guardrail allows",
        Actor.PUBLISHER,
        "measure the model on this hardware, over hours; publish one that holds less, or a threshold that this hardware can bear",
        condemns=True,
        objective=True,
    ),
    _C.CRASH: Meaning(
        "a worker ended by itself; its request was answered by the other slot, and it is started again",
        Actor.NOBODY,
        "nothing for one; several on one release are its publisher's to explain",
        objective=True,
    ),
    _C.HANG: Meaning(
        "a worker gave no answer within limits.deadline_ms and was killed; it is started again",
        Actor.NOBODY,
        "nothing for one; several on one release are its publisher's to explain",
        objective=True,
    ),
    _C.CRASH_LOOP: Meaning(
        "four workers of the slot were lost within a minute, the last by a crash: the slot is given up",
        Actor.PUBLISHER,
        "run the release on this hardware with the input that the gateway's log names; publish a version that lives",
        condemns=True,
        objective=True,
    ),
    _C.HANG_LOOP: Meaning(
        "four workers of the slot were lost within a minute, the last by a hang: the slot is given up",
        Actor.PUBLISHER,
        "measure the model on this hardware; publish a faster one, or a longer limits.deadline_ms",
        condemns=True,
        objective=True,
    ),
    _C.BOOT_LOOP: Meaning(
        "the device, or its gateway, was started three times before the release's trial was over",
        Actor.PUBLISHER,
        "look in the kernel's log for what ended it (memory, a driver); if it was the power, retry with a higher attempt",
        condemns=True,
        objective=True,
    ),
    _C.LOAD_FAILED: Meaning(
        "the runtime refuses the model, it contradicts its manifest, or its worker ended again and again while loading",
        Actor.PUBLISHER,
        "load the release on this hardware and runtime; the detail says what was expected and found",
        condemns=True,
        objective=True,
    ),
    _C.LOAD_DEADLINE: Meaning(
        "its worker was not ready within limits.load_deadline_s, again and again",
        Actor.PUBLISHER,
        "publish a smaller model, fewer golden cases, or a longer limits.load_deadline_s",
        condemns=True,
        objective=True,
    ),
    _C.SELF_TEST_FAILED: Meaning(
        "a golden case is answered otherwise than its publisher says, in this device's environment",
        Actor.PUBLISHER,
        "compare runtime and numpy in the report's fingerprint with where it was evaluated; correct model or tolerance",
        condemns=True,
        objective=True,
    ),
    _C.SELF_TEST_UNANSWERED: Meaning(
        "the gateway did not say in time how the self-test went; tried again later",
        Actor.SITE,
        "look at the gateway: holdfast-agent doctor, systemctl status holdfast-gateway",
    ),
    _C.DAMAGED_BLOB: Meaning(
        "bytes of a slot on this disk are not those that its manifest names; they are fetched again by themselves",
        Actor.SITE,
        "nothing for one; if it comes again, the disk is dying: replace it",
    ),
    _C.NOT_SUPPORTED: Meaning(
        "the release asks for what this agent or worker does not know; tried again later",
        Actor.OPERATOR,
        "update the agent, or leave this device out of the rollout's segment",
    ),
    _C.UNFIT: Meaning(
        "not for this device: architecture, accelerator, memory, runtime, no Python for the environment; tried again later",
        Actor.OPERATOR,
        "leave this device out by its labels, install the runtime, or have a variant or an environment for it published",
    ),
    _C.FETCH_UNREACHABLE: Meaning(
        "no answer from the server, or one that broke off; what came is kept, and the fetch goes on later",
        Actor.SITE,
        "check the network and [server] url: holdfast-agent doctor",
    ),
    _C.FETCH_REFUSED: Meaning(
        "the server answered, and not with the file: 404, 503, a redirect; tried again later",
        Actor.OPERATOR,
        "see that the release is in this server's registry (holdfast release show) and that no proxy answers instead",
    ),
    _C.FETCH_UNTRUSTED: Meaning(
        "no publisher that may publish this pipeline has signed the release or one of its models",
        Actor.OPERATOR,
        "take it as an attack until it is explained; compare the signer with authorities.json",
    ),
    _C.FETCH_DAMAGED: Meaning(
        "other bytes came than the manifest names (a captive portal, too), or this device's disk failed on the way",
        Actor.SITE,
        "see what answers at [server] url from this network, then the disk: holdfast-agent doctor",
    ),
    _C.FETCH_TOO_SLOW: Meaning(
        "less than a kilobyte a second, silence, or the deadline; what came is kept, and the fetch goes on later",
        Actor.SITE,
        "check the network; nothing if it is known to be slow",
    ),
    _C.NO_SPACE: Meaning(
        "the release and the reserve do not fit on the disk; what serves is not touched",
        Actor.SITE,
        "free some space: holdfast-agent doctor says how much",
    ),
    _C.NO_MEMORY: Meaning(
        "too little memory is left to load what would only shadow, or to keep it; it is started when there is more",
        Actor.OPERATOR,
        "leave devices of that size out of the shadow's segment; holdfast-agent status says how it is now",
    ),
    _C.HELD_UP: Meaning(
        "the release is staged, and for a day something that is no window has kept it from being tried: the detail says what",
        Actor.OPERATOR,
        "clear away what the detail names, or leave this device out of the rollout's segment",
    ),
    _C.UNREADABLE: Meaning(
        "the system refused again and again to have a slot's bytes read, or its worker started; the bytes may well be whole",
        Actor.SITE,
        "read the detail and the kernel's log: holdfast-agent verify; replace a disk that fails",
    ),
    _C.OVER_BUDGET: Meaning(
        "a metered network's bytes for today are used up; what came is kept, and the fetch waits without counting as failed",
        Actor.NOBODY,
        "nothing; or raise [network] metered_bytes_per_day, or bring the device to a network that is not metered",
    ),
    _C.OUTSIDE_WINDOW: Meaning(
        "not all of the release is on this disk, and the download window is closed; it waits without counting as failed",
        Actor.NOBODY,
        "nothing: the download begins with its window",
    ),
    _C.REQUIREMENT_UNMET: Meaning(
        "what the release requires of another pipeline is not so since that one went back: this one went back with it, or stays",
        Actor.OPERATOR,
        "nothing if it went back; for a `stay`, assign versions of both pipelines that fit each other",
    ),
    _C.CONDEMNED: Meaning(
        "a document condemns what served here; the device left it, or says that it has nothing to turn to",
        Actor.OPERATOR,
        "nothing if it was left; for a `stay`, assign a release that this device can fetch",
    ),
    _C.LOCAL_ROLLBACK: Meaning(
        "somebody on the device left what served: holdfast-agent rollback",
        Actor.OPERATOR,
        "ask who and why (the detail has the reason); a retry with a higher attempt brings the release back",
        condemns=True,
    ),
    _C.UNCONFIRMED: Meaning(
        "the gateway does not confirm the slot that should serve: one that the device fell back to, or one on trial",
        Actor.SITE,
        "look at the gateway: holdfast-agent doctor, systemctl status holdfast-gateway",
    ),
    _C.UNPROVEN: Meaning(
        "the trial saw fewer requests than the release asks for, and no breach: committed, and gates read `insufficient`",
        Actor.NOBODY,
        "nothing: it is proven once enough requests were counted",
    ),
    _C.MALFORMED: Meaning(
        "an assignment does not have the stated form; it changes nothing",
        Actor.OPERATOR,
        "find out who published it under that topic: the server never writes such",
    ),
    _C.UNTRUSTED: Meaning(
        "an assignment is not signed by a director of its epoch, or is for another fleet, region or device",
        Actor.OPERATOR,
        "take it as an attack until it is explained; compare the signer with authorities.json",
    ),
    _C.EQUIVOCATION: Meaning(
        "two signed documents of one order with different content; the first one holds",
        Actor.OPERATOR,
        "find out who signed the second: two servers share a key, or a restored database went on from an old order",
    ),
    _C.TOO_MANY_PIPELINES: Meaning(
        "more pipelines are assigned than a device holds; the new one is not accepted",
        Actor.OPERATOR,
        "assign fewer to it, or remove one",
    ),
}
# A guardrail's metric, which is also a gate's, and what its breach is called.
GUARDRAILS: Final[dict[str, FailureCode]] = {
    "latency_ms_p99": _C.GUARDRAIL_LATENCY,
    "error_rate": _C.GUARDRAIL_ERROR_RATE,
    "null_rate": _C.GUARDRAIL_NULL_RATE,
    "accuracy_proxy": _C.GUARDRAIL_ACCURACY,
    "memory_bytes": _C.GUARDRAIL_MEMORY,
}
OBJECTIVE: Final = frozenset(code for code, meaning in MEANINGS.items() if meaning.objective)
_BLAMELESS: Final = frozenset(code for code, meaning in MEANINGS.items() if not meaning.condemns)


def condemns(code: str) -> bool:
    """Whether a failure of that code is held against the release. A code of a newer gateway, which this list lacks, is."""
    return code not in _BLAMELESS


def page() -> str:
    """The list for people, in Markdown."""
    lines = [
        "# What a device can say has failed",
        "",
        "Printed from `holdfast_shared/failure_codes.py` by `python -m holdfast_shared.failure_codes`; a test fails when it is",
        "stale. *Condemned here*: the device never serves the pair again without a `retry`. *Server alone*: a rollout halts and",
        "is taken back on it without asking anybody.",
        "",
        "| code | what happened | who must act | what to do | condemned here | server alone |",
        "|---|---|---|---|---|---|",
    ]
    for code, one in MEANINGS.items():
        marks = f"{'yes' if one.condemns else '–'} | {'yes' if one.objective else '–'}"
        lines.append(f"| `{code}` | {one.happened} | {one.actor} | {one.do} | {marks} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
