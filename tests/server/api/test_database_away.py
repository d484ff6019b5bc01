"""PostgreSQL is stopped under a running server, and started again: whoever asks is told, and nothing has to be restarted."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_shared import signing, strict_json, topics
from holdfast_shared.errors import HoldfastError
from holdfast_shared.wire.report import TYPE
from support.broker_peer import Peer
from support.mosquitto import running_mosquitto
from support.postgres import started_postgres
from support.reporting import Reporter, eventually
from support.running_server import FLEET, KEYS, SAMPLE, Client, membership, server_process

pytestmark = pytest.mark.slow
DEVICE = "dev-0"
ANSWERED_S = 60.0


def away(client: Client, path: str) -> bool:
    answer = client.get(path)
    return answer.status == 503 and int(answer.headers["Retry-After"]) > 0


def test_who_asks_while_the_database_is_away_is_told_and_all_goes_on_when_it_is_back(tmp_path: Path) -> None:
    """API, command and page; a report that came meanwhile is stored, and the rollouts are driven on."""
    device = Reporter(DEVICE)
    device.key = KEYS["eve"]
    with (
        running_mosquitto() as broker,
        started_postgres() as postgres,
        server_process(tmp_path, mqtt=broker.url, database=postgres.url) as process,
    ):
        client = process.client
        assert client is not None
        assert client.ask("POST", "memberships", membership(DEVICE)).status == 201
        client.holdfast("publish", SAMPLE, key="mira")
        rollout = client.holdfast(
            "rollout", "plan", "iris", "1.0.0", "--wave", "100%", "--soak", "1", "--deadline", "2", "--start"
        )["id"]
        eventually(lambda: client.get("status").json["broker_connected"])
        postgres.stop()
        assert away(client, "status")
        refused = client.get(f"rollouts/{rollout}").error
        assert (refused["code"], refused["field"]) == ("database-away", "")
        assert "see that the database runs" in refused["next"]
        with pytest.raises(HoldfastError, match="does not answer"):
            client.holdfast("rollout", "pause", rollout)
        page = client.get("/")
        assert (page.status, page.headers["Content-Type"]) == (503, "text/html; charset=utf-8")
        assert b"does not answer" in page.data
        report = device.report(fleet=FLEET)
        envelope = signing.sign(strict_json.encode(report), TYPE, [device.key])
        with Peer(broker) as talker:
            talker.publish(topics.health(FLEET, DEVICE), envelope)
        postgres.start()
        eventually(lambda: client.get("status").status == 200, within_s=ANSWERED_S)
        eventually(lambda: client.get(f"devices/{DEVICE}").json["agent_version"] == "0.1.0", within_s=ANSWERED_S)
        eventually(lambda: client.get(f"rollouts/{rollout}").json["state"] == "paused", within_s=ANSWERED_S)
        assert process.stop() == 0
    assert "Traceback" not in process.log()
