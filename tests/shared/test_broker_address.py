"""A broker's address as people write it: read the same everywhere, and never shown with its password."""

from __future__ import annotations

import pytest

from holdfast_shared.broker_address import BrokerAddress
from holdfast_shared.errors import Malformed


@pytest.mark.parametrize("url", ["127.0.0.1:1883", "http://127.0.0.1", "mqtt://", "mqtt://h:x", "mqtt://h/topic", ""])
def test_a_broker_address_with_a_typo_names_the_option(url: str) -> None:
    with pytest.raises(Malformed) as raised:
        BrokerAddress.parse(url)
    assert raised.value.field == "--mqtt"


def test_a_broker_address_has_a_port_of_its_own_kind() -> None:
    assert BrokerAddress.parse("mqtt://h") == ("h", 1883, False, None, None)
    assert BrokerAddress.parse("mqtts://anna:p%40ss@h:99") == ("h", 99, True, "anna", "p@ss")


def test_its_text_never_shows_the_password() -> None:
    assert str(BrokerAddress.parse("mqtts://anna:secret@h:99")) == "mqtts://h:99"
    with pytest.raises(Malformed) as raised:
        BrokerAddress.parse("mqtts://anna:se@cret@h:port")
    assert "cret" not in str(raised.value)
