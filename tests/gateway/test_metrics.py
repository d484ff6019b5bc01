"""`/metrics`, statistics and the repository index say what was counted, and of which release."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from holdfast_gateway.control import Route
from holdfast_gateway.metrics import BOUNDS_S
from support.gateway_bench import PIPELINE, GatewayBench, eventually, installed
from support.gateway_traffic import Queue

pytestmark = pytest.mark.slow

Read = dict[str, dict[tuple[str, ...], float]]


def scraped(bench: GatewayBench) -> tuple[str, Read]:
    """The text, and the values by sample name and by the labels' values."""
    with bench.http() as http:
        status, headers, body = http.ask("GET", "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found: Read = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            key = tuple(sample.labels.values())
            assert key not in found.setdefault(sample.name, {}), f"{sample.name}{sample.labels} is said twice"
            found[sample.name][key] = sample.value
    return body.decode(), found


def test_metrics_say_what_became_of_requests_of_each_release(bench: GatewayBench) -> None:
    """In Triton's names, in KServe's, and in ours; a failed attempt is the failing release's, its answer the other's."""
    agent = bench.agent()
    serving, refuge = installed(bench.folder, "1.1.0"), installed(bench.folder, "1.0.0")
    agent.until_in_force(agent.serve(serving, refuge))
    agent.until_state(refuge, "ready")
    with bench.http() as http:
        for what in ("ok", "ok", "ok", "null", "error", "fault", "slow:30"):
            http.infer(v1_1_0=what)
        http.infer(version="9.9.9")
    _, found = scraped(bench)
    new, old = (PIPELINE, "1.1.0"), (PIPELINE, "1.0.0")
    assert found["nv_inference_request_success_total"] == {new: 4, old: 2}
    failures = found["nv_inference_request_failure_total"]
    assert failures[*new, "BACKEND"] == 2
    assert failures[*new, "OTHER"] == 1
    assert found["nv_inference_exec_count_total"] == {new: 6, old: 2}
    assert found["nv_inference_request_duration_us_total"][new] >= 30_000
    assert 0 < found["nv_inference_compute_infer_duration_us_total"][new] <= 40  # the stand-in says 10 of each
    assert found["holdfast_failovers_total"] == {new: 2, old: 0}
    assert (found["holdfast_nulls_total"][new], found["holdfast_errors_total"][new]) == (1, 1)
    assert found["holdfast_serving"] == {new: 1, old: 0}
    assert found["holdfast_slot_ready"] == {(*new, "system"): 1, (*old, "system"): 1}
    assert found["holdfast_refused_total"][PIPELINE, "other-version"] == 1
    assert found["holdfast_worker_starts_total"] == {new: 1, old: 1}
    assert all(value > 0 for value in found["holdfast_worker_memory_bytes"].values())
    assert found["process_resident_memory_bytes"][()] > 1_000_000


def test_the_latency_histogram_is_cumulative_and_as_long_as_the_attempts_were(bench: GatewayBench) -> None:
    agent = bench.agent()
    agent.until_in_force(agent.serve(installed(bench.folder, "1.0.0")))
    with bench.http() as http:
        for _ in range(5):
            http.infer()
        http.infer(all_="slow:120")
    _, found = scraped(bench)
    buckets = [found["request_predict_seconds_bucket"][PIPELINE, str(bound)] for bound in BOUNDS_S]
    assert buckets == sorted(buckets)
    assert found["request_predict_seconds_bucket"][PIPELINE, "0.1"] <= 5
    assert found["request_predict_seconds_bucket"][PIPELINE, "+Inf"] == 6
    assert found["request_predict_seconds_count"][PIPELINE,] == 6
    assert found["request_predict_seconds_sum"][PIPELINE,] >= 0.119


def test_every_family_has_its_help_and_type_before_it_and_names_keep_the_rules(bench: GatewayBench) -> None:
    """What `promtool check metrics` asks for, of the names that are ours to choose."""
    agent = bench.agent()
    agent.until_in_force(agent.serve(installed(bench.folder, "1.0.0")))
    text, _ = scraped(bench)
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    for line in text.splitlines():
        name = line.split(" ")[2] if line.startswith("#") else re.split(r"[{ ]", line)[0]
        if line.startswith("# HELP"):
            assert name not in helped
            assert len(line.split(" ", 3)[3]) > 5
            helped.add(name)
        elif line.startswith("# TYPE"):
            assert name in helped
            kinds[name] = line.split(" ")[3]
        else:
            family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in kinds else name
            assert family in kinds, f"{name} comes before its type"
    ours = {name: kind for name, kind in kinds.items() if name.startswith(("holdfast_", "process_"))}
    assert {name for name, kind in ours.items() if kind == "counter"} == {n for n in ours if n.endswith("_total")}
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in kinds)


def test_a_look_at_metrics_costs_no_counts_and_no_release(bench: GatewayBench) -> None:
    """It answers before anything is assigned, and after a pipeline is gone."""
    assert scraped(bench)[1]["holdfast_build_info"]
    agent = bench.agent()
    agent.until_in_force(agent.serve(installed(bench.folder, "1.0.0")))
    with bench.http() as http:
        http.infer()
        assert http.ask("POST", "/metrics", b"")[0] == 405
    agent.until_in_force(agent.route())
    _, found = scraped(bench)
    assert found["nv_inference_request_success_total"][PIPELINE, "1.0.0"] == 1
    assert "holdfast_serving" not in found


def test_what_is_turned_away_or_given_up_is_told(bench: GatewayBench) -> None:
    """A worker that was lost, and requests that nobody was left to answer."""
    agent = bench.agent()
    target = installed(bench.folder, "1.0.0", load="fail:load-failed")
    agent.serve(target)
    agent.until_state(target, "failed")
    with bench.http() as http:
        assert http.infer()[0] == 503
    _, found = scraped(bench)
    assert found["holdfast_refused_total"][PIPELINE, "no-release"] == 1
    assert found["holdfast_slot_ready"][PIPELINE, "1.0.0", "system"] == 0


def test_a_lost_worker_is_counted_as_lost_and_as_started_again(bench: GatewayBench) -> None:
    agent = bench.agent()
    serving, refuge = installed(bench.folder, "1.1.0"), installed(bench.folder, "1.0.0")
    agent.until_in_force(agent.serve(serving, refuge))
    agent.until_state(refuge, "ready")
    with bench.http() as http:
        http.infer(v1_1_0="crash")
    new = (PIPELINE, "1.1.0")
    eventually(lambda: scraped(bench)[1]["holdfast_worker_starts_total"][new] == 2, "it is not started again")
    assert scraped(bench)[1]["holdfast_worker_losses_total"][new] == 1


# -- Triton's statistics and index


def test_statistics_are_of_every_release_that_is_loaded_or_of_the_one_that_is_named(bench: GatewayBench) -> None:
    agent = bench.agent()
    serving, refuge = installed(bench.folder, "1.1.0"), installed(bench.folder, "1.0.0")
    agent.until_in_force(agent.serve(serving, refuge))
    agent.until_state(refuge, "ready")
    with bench.http() as http:
        http.infer()
        http.infer(v1_1_0="null")
        http.infer(v1_1_0="slow:20")
        _, both = http.get(f"/v2/models/{PIPELINE}/stats")
        _, old = http.get(f"/v2/models/{PIPELINE}/versions/1.0.0/stats")
        status, answer = http.get(f"/v2/models/{PIPELINE}/versions/9.9.9/stats")
        _, everything = http.get("/v2/models/stats")
    assert [one["version"] for one in both["model_stats"]] == ["1.1.0", "1.0.0"]
    assert everything == both
    found = both["model_stats"][0]
    stats = found["inference_stats"]
    assert (found["inference_count"], found["execution_count"]) == (2, 3)
    assert (stats["success"]["count"], stats["fail"]["count"]) == (2, 1)
    assert stats["success"]["ns"] >= 20_000_000
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(stats[name]["ns"] for name in parts) == stats["success"]["ns"]
    assert 0 <= time.time() * 1000 - found["last_inference"] < 60_000
    assert old["model_stats"] == both["model_stats"][1:]
    assert (status, answer["error"]) == (404, "digits: version 9.9.9 is not loaded here; loaded: 1.1.0, 1.0.0")


def test_what_waited_is_told_apart_from_what_was_computed(bench: GatewayBench) -> None:
    """Three requests at once, each 50 ms of a worker that does one at a time: the third waited for two."""
    agent = bench.agent()
    agent.until_in_force(agent.serve(installed(bench.folder, "1.0.0")))
    with Queue(bench, 3) as queue:
        queue.send(*[{"*": "slow:50"}] * 3)
        assert [status for status, _ in queue.answers()] == [200] * 3
    with bench.http() as http:
        _, answer = http.get(f"/v2/models/{PIPELINE}/stats")
    stats = answer["model_stats"][0]["inference_stats"]
    assert stats["queue"]["ns"] >= 100_000_000
    assert stats["success"]["ns"] >= stats["queue"]["ns"] + 149_000_000


def test_the_repository_index_calls_ready_only_what_answers(bench: GatewayBench) -> None:
    """A refuge is loaded, and answers nobody who asks for it by name."""
    agent = bench.agent()
    serving, refuge = installed(bench.folder, "1.1.0"), installed(bench.folder, "1.0.0")
    bad = installed(bench.folder, "2.0.0", pipeline="faces", load="fail:load-failed")
    agent.serve(serving, refuge)
    agent.route(Route(pipeline=PIPELINE, serving=serving, refuge=refuge), Route(pipeline="faces", serving=bad))
    agent.until_state(refuge, "ready")
    agent.until_state(serving, "ready")
    agent.until_state(bad, "failed")
    found = {(one["name"], one["version"]): one for one in index(bench, b"")}
    assert found["faces", "2.0.0"]["state"] == "UNAVAILABLE"
    assert "load-failed" in found["faces", "2.0.0"]["reason"]
    assert found[PIPELINE, "1.1.0"] == {"name": PIPELINE, "version": "1.1.0", "state": "READY", "reason": ""}
    assert found[PIPELINE, "1.0.0"]["state"] == "UNAVAILABLE"
    assert [one["version"] for one in index(bench, b'{"ready": true}')] == ["1.1.0"]


def index(bench: GatewayBench, body: bytes) -> list[dict[str, Any]]:
    with bench.http() as http:
        status, _, answer = http.ask("POST", "/v2/repository/index", body)
    assert status == 200
    found: list[dict[str, Any]] = json.loads(answer)
    return found
