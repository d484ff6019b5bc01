"""A device starts only as itself: each thing that does not fit is one error that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.edge import configuration, identity
from holdfast_agent.edge.configuration import Configuration
from holdfast_shared import signing, strict_json
from holdfast_shared.authorities import Authorities, Director, Holder, Publisher
from holdfast_shared.errors import Conflict, HoldfastError, Malformed, Missing, Untrusted
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire import membership
from holdfast_shared.wire.membership import Membership

ENROLMENT, OTHER, DEVICE = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
MEMBERSHIP = Membership(
    fleet="acme",
    device="camera-7",
    region="eu-west",
    counter=1,
    public_key=DEVICE.public.to_text(),
    issued_at=1,
    labels={"ring": "canary"},
)
Spoil = Callable[[Path], object]


def provision(folder: Path) -> Configuration:
    text = OTHER.public.to_text()
    trusted = Authorities(
        fleet="acme",
        version=1,
        publishers=(Publisher(name="p", public_key=text),),
        directors=(Director(name="d", public_key=text, epoch=1),),
        enrolment=(Holder(name="e", public_key=ENROLMENT.public.to_text()),),
        operators=(),
        approvers=(),
    )
    (folder / "authorities.json").write_bytes(strict_json.encode(trusted))
    (folder / "device.key").touch(mode=0o600)
    (folder / "device.key").write_bytes(DEVICE.to_pem())
    write_membership(folder, MEMBERSHIP, ENROLMENT)
    return Configuration(
        device=configuration.Device(
            id="camera-7",
            fleet="acme",
            state=str(folder / "state"),
            key=str(folder / "device.key"),
            membership=str(folder / "membership.json"),
            authorities=str(folder / "authorities.json"),
        ),
        server=configuration.Server(url="http://127.0.0.1:1"),
        broker=configuration.Broker(url="mqtt://127.0.0.1:1"),
    )


def write_membership(folder: Path, document: Membership, key: PrivateKey) -> None:
    (folder / "membership.json").write_bytes(signing.sign(strict_json.encode(document), membership.TYPE, [key]))


def changed(**fields: object) -> Spoil:
    return lambda folder: write_membership(folder, msgspec.structs.replace(MEMBERSHIP, **fields), ENROLMENT)


def test_a_well_provisioned_device_knows_itself(tmp_path: Path) -> None:
    found = identity.load(provision(tmp_path))
    assert found.membership == MEMBERSHIP
    assert found.key.public.key_id == DEVICE.public.key_id
    assert found.authorities.fleet == "acme"


@pytest.mark.parametrize(
    ("spoil", "error", "named"),
    [
        (lambda folder: (folder / "authorities.json").unlink(), Missing, "authorities.json"),
        (lambda folder: (folder / "membership.json").unlink(), Missing, "membership.json"),
        (lambda folder: (folder / "device.key").unlink(), Missing, "device.key"),
        (lambda folder: write_membership(folder, MEMBERSHIP, OTHER), Untrusted, "membership.json"),
        (lambda folder: (folder / "membership.json").write_bytes(b"{}"), Malformed, "membership"),
        (lambda folder: (folder / "membership.json").write_bytes(b"x" * 20_000), Malformed, "larger"),
        (changed(device="camera-8"), Conflict, "camera-8"),
        (changed(fleet="other"), Conflict, "other"),
        (changed(public_key=OTHER.public.to_text()), Conflict, "public_key"),
        (lambda folder: (folder / "device.key").chmod(0o604), Untrusted, "0604"),
        (lambda folder: (folder / "device.key").write_bytes(b"no key"), Malformed, "device.key"),
        (lambda folder: (folder / "device.key").write_bytes(OTHER.to_pem()), Conflict, "public_key"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(
    tmp_path: Path, spoil: Spoil, error: type[HoldfastError], named: str
) -> None:
    provisioned = provision(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error) as refused:
        identity.load(provisioned)
    assert named in str(refused.value)
    assert refused.value.next_step


def test_authorities_of_another_fleet_are_refused(tmp_path: Path) -> None:
    provisioned = provision(tmp_path)
    path = tmp_path / "authorities.json"
    path.write_bytes(path.read_bytes().replace(b'"acme"', b'"emca"'))
    with pytest.raises(Conflict, match="emca"):
        identity.load(provisioned)


def test_a_group_may_read_the_key(tmp_path: Path) -> None:
    provisioned = provision(tmp_path)
    (tmp_path / "device.key").chmod(0o640)
    assert identity.load(provisioned).key.public.key_id == DEVICE.public.key_id
