"""The list of stable codes is the whole of what a device says: nothing unlisted is emitted, nothing is listed in vain, each is
provoked by a test, and the page for people is not stale.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import holdfast_agent
import holdfast_shared
from holdfast_shared import errors, failure_codes
from holdfast_shared.failure_codes import MEANINGS, OBJECTIVE, FailureCode

ROOT = Path(__file__).parents[2]
AGENT = Path(holdfast_agent.__file__).parents[1]
SHARED = Path(holdfast_shared.__file__).parent
# What a document is refused by: the errors that these files raise have their code from their class.
ACCEPTANCE = (
    AGENT / "holdfast_agent/core/acceptance.py",
    SHARED / "signing.py",
    SHARED / "strict_json.py",
)
# Who puts a code into a report, an event or a status, and where among its arguments a code may stand.
EMITTERS = {
    "_given_up",
    "telling",
    "leave",
    "stay",
    "condemn_candidate",
    "Leaving",
    "Failed",
    "LoadRefused",
    "_failed",
    "_fail",
}
WORDS = {code.value for code in FailureCode}
# One test that provokes each. Those of the core are transcripts; the gateway's have a real worker process, the fetch's a server.
PROVOKED = {
    "guardrail-latency": "tests/agent/core/test_departure.py::test_a_breach_in_a_trial_falls_back_at_once",
    "guardrail-error-rate": "tests/agent/core/test_departure.py::test_a_breach_in_a_trial_falls_back_at_once",
    "guardrail-null-rate": "tests/agent/test_running_device.py"
    "::test_a_release_that_goes_bad_on_live_traffic_is_left_by_the_device_itself",
    "guardrail-accuracy": "tests/agent/test_measured_device.py"
    "::test_a_release_whose_predictions_turn_out_wrong_is_left_by_the_device_itself",
    "guardrail-drift": "tests/agent/test_measured_device.py::test_drift_is_told_and_takes_nothing_back",
    "guardrail-memory": "tests/agent/test_measured_device.py::test_a_release_that_holds_too_much_is_left_by_the_device_itself",
    "crash": "tests/gateway/test_failover.py::test_a_lost_worker_says_how_it_was_lost",
    "hang": "tests/gateway/test_failover.py::test_a_lost_worker_says_how_it_was_lost",
    "crash-loop": "tests/gateway/test_failover.py::test_a_worker_that_is_lost_again_and_again_is_given_up",
    "hang-loop": "tests/gateway/test_failover.py::test_a_worker_that_is_lost_again_and_again_is_given_up",
    "boot-loop": "tests/agent/core/test_boot_loop.py"
    "::test_a_boot_loop_of_a_hundred_starts_costs_one_fallback_and_settles",
    "load-failed": "tests/gateway/test_routes.py::test_loading_has_an_end",
    "load-deadline": "tests/gateway/test_routes.py::test_loading_has_an_end",
    "self-test-failed": "tests/agent/test_running_device.py::test_a_release_that_fails_its_self_test_never_serves",
    "self-test-unanswered": "tests/agent/core/test_life.py"
    "::test_a_gateway_that_does_not_answer_a_self_test_condemns_nothing",
    "damaged-blob": "tests/gateway/test_routes.py::test_a_manifest_that_is_damaged_fails_its_slot_alone",
    "not-supported": "tests/agent/fetch/test_staging.py"
    "::test_a_release_that_may_not_or_cannot_run_here_is_refused_before_any_blob",
    "unfit": "tests/agent/fetch/test_staging.py"
    "::test_a_release_that_may_not_or_cannot_run_here_is_refused_before_any_blob",
    "fetch-unreachable": "tests/agent/fetch/test_staging.py::test_nobody_there_is_unreachable",
    "fetch-refused": "tests/agent/fetch/test_downloads.py::test_whatever_answers_for_a_blob_is_one_stable_code",
    "fetch-untrusted": "tests/agent/fetch/test_staging.py"
    "::test_a_release_that_may_not_or_cannot_run_here_is_refused_before_any_blob",
    "fetch-damaged": "tests/agent/fetch/test_downloads.py::test_whatever_answers_for_a_blob_is_one_stable_code",
    "fetch-too-slow": "tests/agent/fetch/test_downloads.py::test_a_body_under_the_floor_is_given_up_and_kept",
    "no-space": "tests/agent/fetch/test_staging.py::test_a_disk_that_fills_up_on_the_way_is_no_space",
    "no-memory": "tests/gateway/test_shadow_memory.py"
    "::test_it_is_let_go_when_memory_runs_short_and_comes_back_when_there_is_more",
    "held-up": "tests/agent/core/test_ways.py"
    "::test_what_is_held_up_for_a_day_is_told_with_what_holds_it_and_waits_in_idle",
    "unreadable": "tests/agent/core/test_verification.py::test_what_cannot_be_read_is_no_damage_and_is_told_once",
    "over-budget": "tests/agent/fetch/test_restraints.py"
    "::test_the_days_bytes_are_used_up_and_the_next_day_goes_on_from_there",
    "outside-window": "tests/agent/fetch/test_restraints.py"
    "::test_what_is_all_here_needs_no_window_and_what_is_not_asks_for_nothing",
    "requirement-unmet": "tests/agent/core/test_requirements.py"
    "::test_a_pipeline_that_falls_back_takes_along_the_one_that_requires_what_it_left",
    "condemned": "tests/agent/core/test_departure.py"
    "::test_urgent_with_nothing_to_turn_to_stays_and_adopts_the_target_without_a_trial",
    "local-rollback": "tests/agent/core/test_local_rollback.py"
    "::test_what_serves_is_condemned_here_and_previous_serves_at_once",
    "unconfirmed": "tests/agent/core/test_departure.py"
    "::test_a_fallback_that_the_gateway_never_confirms_ends_at_its_deadline",
    "unproven": "tests/agent/core/test_life.py::test_too_few_requests_commit_unproven_after_the_gateway_was_asked",
    "malformed": "tests/agent/core/test_acceptance.py::test_what_is_refused_changes_nothing_and_is_told",
    "untrusted": "tests/agent/core/test_acceptance.py::test_what_is_refused_changes_nothing_and_is_told",
    "equivocation": "tests/agent/core/test_acceptance.py"
    "::test_one_order_with_two_contents_is_an_alarm_and_the_first_holds",
    "too-many-pipelines": "tests/agent/core/test_acceptance.py::test_a_device_holds_a_limited_number_of_pipelines",
}


def test_the_page_is_not_stale() -> None:
    """Stale? `python -m holdfast_shared.failure_codes > agent/FAILURES.md`."""
    assert (ROOT / "agent" / "FAILURES.md").read_text() == failure_codes.page()


def test_every_code_has_a_meaning_that_fits_one_row() -> None:
    assert list(MEANINGS) == list(FailureCode)
    for one in MEANINGS.values():
        assert one.happened
        assert one.do
        assert "|" not in one.happened + one.do


def test_a_server_acts_alone_on_nothing_that_the_device_itself_calls_somebodys_judgement() -> None:
    """Whatever is held against a release by measurement is objective; a person's rollback is held, and is not."""
    assert {code for code, one in MEANINGS.items() if one.condemns} - OBJECTIVE == {FailureCode.LOCAL_ROLLBACK}
    assert failure_codes.condemns("a-code-of-next-year"), "what a newer gateway calls a failure is one"


def test_nothing_is_emitted_that_is_not_listed() -> None:
    said = {word for path in _files() for word in _literals(ast.parse(path.read_text()))}
    assert said - WORDS == set()


def test_nothing_is_listed_that_nobody_emits() -> None:
    emitted = {word for path in _files() for word in _emitted(ast.parse(path.read_text()))}
    emitted |= set(_refusals())
    assert WORDS - emitted == set()


def test_whatever_a_document_is_refused_by_is_listed() -> None:
    assert set(_refusals()) <= WORDS


def test_every_code_is_provoked_by_a_test() -> None:
    assert PROVOKED.keys() == WORDS


@pytest.mark.parametrize(("code", "node"), PROVOKED.items(), ids=PROVOKED.keys())
def test_the_test_that_provokes_it_is_there_and_names_it(code: str, node: str) -> None:
    path, _, name = node.partition("::")
    text = (ROOT / path).read_text()
    assert any(isinstance(one, ast.FunctionDef) and one.name == name for one in ast.parse(text).body)
    assert code in text


def _files() -> Iterator[Path]:
    return (path for path in AGENT.rglob("*.py") if "commands" not in path.parts)


def _literals(tree: ast.Module) -> Iterator[str]:
    """Words that are passed to an emitter as a code."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or _name(call.func) not in EMITTERS:
            continue
        code = [one.value for one in call.keywords if one.arg == "code"]
        if not code and _name(call.func) in ("LoadRefused", "Failed", "_failed", "_fail"):
            code = call.args[:1]
        for value in code:
            for one in ast.walk(value):
                if isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value:
                    yield one.value


def _emitted(tree: ast.Module) -> Iterator[str]:
    """Those, and every member of the list that is named in a file of the device."""
    yield from _literals(tree)
    for one in ast.walk(tree):
        if isinstance(one, ast.Attribute) and _name(one.value) == "FailureCode":
            yield FailureCode[one.attr].value
        if isinstance(one, ast.Name) and one.id == "GUARDRAILS":
            yield from failure_codes.GUARDRAILS.values()


def _refusals() -> Iterator[str]:
    """The codes of what acceptance, and what it calls, raises: its class's, unless it names one."""
    for path in ACCEPTANCE:
        for one in ast.walk(ast.parse(path.read_text())):
            if not isinstance(one, ast.Raise) or not isinstance(one.exc, ast.Call):
                continue
            kind = getattr(errors, _name(one.exc.func), None)
            if kind is None:  # a bug of ours, not a refusal
                continue
            named = [word.value for word in one.exc.keywords if word.arg == "code"]
            if not named:
                yield kind.code
            for value in named:
                assert isinstance(value, ast.Attribute), "a refusal's code is one of the list"
                yield FailureCode[value.attr].value


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
