"""Without authorities that parse and name somebody, nothing starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast_shared import authorities
from holdfast_shared.errors import HoldfastError, Untrusted
from holdfast_shared.signing import PrivateKey

KEYS = {name: PrivateKey.generate() for name in ("director", "publisher", "enrolment", "alice", "bob")}


def _document() -> dict[str, object]:
    def holder(name: str) -> dict[str, object]:
        return {"name": name, "public_key": KEYS[name].public.to_text()}

    return {
        "type": "holdfast.authorities/1", "fleet": "f", "version": 1,
        "publishers": [{**holder("publisher"), "pipelines": ["digits"]}],
        "directors": [{**holder("director"), "epoch": 3}],
        "enrolment": [holder("enrolment")],
        "operators": [holder("alice")],
        "approvers": [holder("bob")],
    }  # fmt: skip


def test_each_role_has_its_own_keys(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_document()))
    found = authorities.load(tmp_path / "a.json")
    assert set(found.director_keys(3)) == {KEYS["director"].public.key_id}
    assert found.director_keys(2) == {}
    assert set(found.publisher_keys("digits")) == {KEYS["publisher"].public.key_id}
    assert found.publisher_keys("other") == {}
    assert set(found.publisher_keys(None)) == {KEYS["publisher"].public.key_id}
    assert found.name_of(KEYS["alice"].public.key_id) == "alice"
    assert KEYS["alice"].public.key_id not in found.approver_keys()
    with pytest.raises(Untrusted):
        found.name_of(KEYS["publisher"].public.key_id)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"directors": []}, "director"),
        ({"fleet": "No Fleet"}, "fleet"),
        ({"operators": [{"name": "x", "public_key": "AAAA"}]}, "operators[0].public_key"),
        ({"operators": [{"name": "x", "public_key": "!" * 44}]}, "base64"),
        ({"operators": [{"name": "x", "public_key": "A" * 43 + "=", "role": "god"}]}, "role"),
        ({"type": "holdfast.authorities/2"}, "type"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, change: dict[str, object], named: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps({**_document(), **change}))
    with pytest.raises(HoldfastError) as refused:
        authorities.load(tmp_path / "a.json")
    assert named in str(refused.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match="provision"):
        authorities.load(tmp_path / "none.json")
