"""A fleet in memory that answers as the API does, for tests of the page alone: it can be changed, and says so."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import flask
from werkzeug.serving import make_server

from holdfast_server import web
from holdfast_shared import selector
from holdfast_shared.errors import Missing

DIGEST: Final = "sha256:" + "ab" * 32
NOW: Final = time.time_ns() // 1000 - 42_000_000
SHARE: Final = {"share": 500, "segment": "tier=beta", "in_words": "5 % of requests with tier=beta"}
REGIONS: Final = ("ap-south", "eu-west", "us-east")


def ref(version: str) -> dict[str, str]:
    return {"version": version, "digest": DIGEST}


class ShownFleet:
    """Implements `web.Reads`. Each attribute may be changed; `changed(topic, …)` tells the open pages."""

    def __init__(self, *, devices_a_region: int = 100) -> None:
        self.versions = ["1.0.0", "1.1.0", "1.2.0"]
        self.device_list = [device(region, index) for region in REGIONS for index in range(devices_a_region)]
        self.rollout_list = [halted_rollout(), finished_rollout()]
        self.rollback_list: list[Any] = [rollback()]
        self.decision_list: list[Any] = [
            {
                "number": 7,
                "what": "rollout halted",
                "subject": "ro-3",
                "why": "3 of 3 judged device(s) fail: null-output",
                "evidence": {"chance": 0.000008, "failing": ["eu-west-000"], "gate": "null_rate"},
                "at": NOW,
                "monotonic_us": 1,
            },
            {
                "number": 6,
                "what": "wave 1 of 5 released",
                "subject": "ro-3",
                "why": "started by anna",
                "evidence": None,
                "at": NOW,
                "monotonic_us": 1,
            },
        ]
        self._listeners: list[queue.SimpleQueue[tuple[str, ...]]] = []

    def status(self) -> Any:
        return {
            "fleet": "demo",
            "version": "0.1.0",
            "now": NOW,
            "broker_connected": True,
            "over_quota": {},
            "devices": len(self.device_list),
        }

    def fleet(self) -> Any:
        regions: dict[str, Any] = {}
        for one in self.device_list:
            counts = regions.setdefault(
                one["region"],
                {"devices": 0, "online": 0, "serving": {}, "states": {}, "single": 0, "degraded": 0, "shares": 0},
            )
            reported = one["pipelines"][0]
            version = (reported["serving"] or {}).get("version")
            counts["devices"] += 1
            counts["online"] += one["online"]
            counts["single"] += bool(reported.get("single"))
            counts["degraded"] += bool(reported.get("degraded"))
            counts["shares"] += reported["requests"] is not None
            counts["states"][reported["state"]] = counts["states"].get(reported["state"], 0) + 1
            if version:
                counts["serving"][version] = counts["serving"].get(version, 0) + 1
        return {"pipelines": {"digits": regions} if regions else {}}

    def devices(self, segment: str, after: str | None, limit: int) -> Any:
        terms = selector.parse(segment)
        found = [
            one
            for one in self.device_list
            if selector.holds(terms, {**one["labels"], "region": one["region"]}) and one["device"] > (after or "")
        ]
        shown = [one | {"pipelines": [_without_prediction(it) for it in one["pipelines"]]} for one in found[:limit]]
        return {"devices": shown, "next": found[limit - 1]["device"] if len(found) > limit else None}

    def device(self, device: str) -> Any:
        for one in self.device_list:
            if one["device"] == device:
                return one
        raise Missing(f"no device {device!r} is enrolled", field="device", next_step="look at the list of devices")

    def releases(self) -> Any:
        return {
            "releases": [
                {"pipeline": "digits", "version": version, "digest": DIGEST, "published_at": NOW, "publisher": "mira"}
                for version in self.versions
            ]
        }

    def rollouts(self) -> Any:
        return {"rollouts": self.rollout_list}

    def rollbacks(self) -> Any:
        return {"rollbacks": self.rollback_list}

    def decisions(self, after: int | None, limit: int) -> Any:
        found = [one for one in self.decision_list if one["number"] > (after or 0)]
        return {"decisions": found[:limit], "next": None}

    def changed(self, *topics: str) -> None:
        for listener in self._listeners:
            listener.put(topics)

    @property
    def listening(self) -> int:
        return len(self._listeners)

    def application(self) -> flask.Flask:
        """The page as the server registers it, with an event stream."""
        app = flask.Flask("shown_fleet")
        app.register_blueprint(web.blueprint(self))

        _serve_reads(app, self)

        @app.get("/api/v1/events")
        def events() -> flask.Response:
            mine: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
            self._listeners.append(mine)

            def stream() -> Iterator[str]:
                yield ": here\n\n"
                while topics := mine.get():
                    yield f"event: change\ndata: {flask.json.dumps({'topics': topics})}\n\n"

            return flask.Response(stream(), mimetype="text/event-stream")

        return app

    def close(self) -> None:
        for listener in self._listeners:
            listener.put(())


def _serve_reads(app: flask.Flask, fleet: ShownFleet) -> None:
    """The API's reads, for the command line."""

    def one(found: list[Any], name: str) -> Any:
        for item in found:
            if item["id"] == name:
                return item
        raise Missing(f"{name!r} is not there", field="id", next_step="look at the list")

    def devices() -> Any:
        asked = flask.request.args
        return fleet.devices(asked.get("segment", "*"), asked.get("after"), int(asked.get("limit", 100)))

    for rule, view in (
        ("status", fleet.status),
        ("fleet", fleet.fleet),
        ("devices", devices),
        ("devices/<device>", fleet.device),
        ("releases", fleet.releases),
        ("rollouts", fleet.rollouts),
        ("rollouts/<name>", lambda name: one(fleet.rollout_list, name)),
        ("rollbacks", fleet.rollbacks),
        ("rollbacks/<name>", lambda name: one(fleet.rollback_list, name)),
        ("decisions", lambda: fleet.decisions(None, 100)),
    ):
        app.add_url_rule(f"/api/v1/{rule}", f"api_{rule}", view)

    @app.errorhandler(Missing)
    def missing(error: Missing) -> tuple[Any, int]:
        told = {"code": error.code, "field": error.field, "message": error.message, "next": error.next_step}
        return {"error": told}, 404


class Shown:
    """A server for the page, on a port of its own, until `close`."""

    def __init__(self, fleet: ShownFleet) -> None:
        self.fleet = fleet
        self._server = make_server("127.0.0.1", 0, fleet.application(), threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.fleet.close()
        self._server.shutdown()
        self._thread.join(timeout=10)
        self._server.server_close()


def _without_prediction(pipeline: Any) -> Any:
    """Only one device's own page works out what `assign` says of it."""
    return {name: value for name, value in pipeline.items() if name != "prediction"}


def device(region: str, index: int) -> Any:
    serving = "1.0.0" if index % 9 == 8 else "1.1.0"
    reported: dict[str, Any] = {
        "pipeline": "digits",
        "state": "idle",
        "serving": {**ref(serving), "ready": True},
        "current": {**ref(serving), "ready": True},
        "previous": {"version": "1.0.0", "digest": "sha256:" + "cd" * 32, "ready": True},
        "candidate": None,
        "single": False,
        "degraded": False,
        "condemned_here": [],
        "requests": None,
        "waiting_for": "",
        "prediction": {"serve": ref("1.1.0"), "reason": "rule"},
    }
    if index == 0:
        reported |= {
            "condemned_here": [{**ref("1.2.0"), "code": "null-output", "at": NOW}],
            "single": True,
            "previous": None,
        }
    if index == 11:
        reported |= {"state": "fetching"}
    return {
        "device": f"{region}-{index:03}",
        "region": region,
        "labels": {"kind": "real" if index < 2 else "light", **({"ring": "canary"} if index == 0 else {})},
        "stage": "production",
        "counter": 1,
        "online": index != 5,
        "last_seen_at": NOW,
        "agent_version": "0.1.0",
        "isolation": {"applied": {"network": "seccomp"}, "degraded": {"files": "the kernel offers no Landlock"}},
        "pipelines": [reported],
    }


def wave(number: int, share: int, cohort: int, state: str, *, labels: dict[str, str] | None = None) -> Any:
    verdict = {"passed": "pass", "failed": "fail"}.get(state, "insufficient")
    counts = {
        "pass": {"pass": cohort, "fail": 0, "insufficient": 0},
        "fail": {"pass": 0, "fail": 3, "insufficient": max(0, cohort - 3)},
        "insufficient": {"pass": 0, "fail": 0, "insufficient": cohort},
    }[verdict]
    return {
        "number": number,
        "regions": [],
        "labels": labels or {},
        "share": share,
        "below": share,
        "cohort": cohort,
        "real_share": round(10_000 * cohort / 300),
        "devices_min": 3,
        "requests": None,
        "defect_seen": {f"{part}%": 1 - (1 - part / 100) ** cohort for part in (1, 5, 10)},
        "state": state,
        "released_at": None if state == "waiting" else NOW,
        "passed_at": NOW if state == "passed" else None,
        "gates": [
            {
                "metric": "latency_ms_p99",
                "threshold": 50.0,
                "verdict": "pass" if verdict == "pass" else "insufficient",
                "devices": counts if verdict == "pass" else {"pass": 0, "fail": 0, "insufficient": cohort},
                "evidence": {},
            },
            {
                "metric": "null_rate",
                "threshold": 0.02,
                "verdict": verdict,
                "devices": counts,
                "evidence": {"real": 2, "light": 1},
            },
        ],
    }


def halted_rollout() -> Any:
    return {
        "id": "ro-3",
        "pipeline": "digits",
        "release": ref("1.2.0"),
        "previous": ref("1.1.0"),
        "segment": "*",
        "state": "halted",
        "cause": "3 of 3 judged device(s) fail: null-output × 2, guardrail-latency × 1",
        "halted_at": NOW,
        "waves": [
            wave(1, 10_000, 3, "failed", labels={"ring": "canary"}),
            wave(2, 100, 5, "waiting"),
            wave(3, 500, 17, "waiting"),
            wave(4, 2_000, 61, "waiting"),
            wave(5, 10_000, 300, "waiting"),
        ],
    }


def running_rollout() -> Any:
    return halted_rollout() | {
        "id": "ro-4",
        "release": ref("1.3.0"),
        "state": "running",
        "cause": "",
        "halted_at": None,
        "waves": [
            wave(1, 10_000, 3, "passed", labels={"ring": "canary"}),
            wave(2, 100, 5, "passed"),
            wave(3, 500, 17, "released"),
            wave(4, 2_000, 61, "waiting"),
            wave(5, 10_000, 300, "waiting"),
        ],
    }


def sharing_rollout() -> Any:
    """5 % of the requests of one segment, then all devices whole."""
    first = wave(1, 10_000, 300, "released") | {"requests": SHARE}
    return running_rollout() | {"waves": [first, wave(2, 10_000, 300, "waiting")]}


def finished_rollout() -> Any:
    finished = halted_rollout() | {
        "id": "ro-2",
        "release": ref("1.1.0"),
        "previous": ref("1.0.0"),
        "state": "finished",
        "cause": "",
    }
    finished["halted_at"] = None
    finished["waves"] = [wave(1, 10_000, 3, "passed", labels={"ring": "canary"}), wave(2, 10_000, 300, "passed")]
    return finished


def rollback() -> Any:
    return {
        "id": "rb-1",
        "pipeline": "digits",
        "version": "1.3.0",
        "to": "1.1.0",
        "segment": "region=eu-west",
        "reason": "wrong totals at two shops",
        "state": "accepted",
        "requested_by": "anna",
        "approved_by": "ben",
        "request": DIGEST,
        "devices_before": 102,
        "devices_back": 77,
        "at": NOW,
    }
