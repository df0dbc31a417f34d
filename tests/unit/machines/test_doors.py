"""Real connections on this machine: who answers, who does not, and what time it is there."""

import socket

import pytest

from grove_megatron.machines import doors

HERE = "127.0.0.1"


def test_a_clock_is_read_over_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1000))
    # A clock that goes a second at every look: left at 2n, there at 2n + 1, back at 2n + 2.
    monkeypatch.setattr(doors, "now", lambda: float(next(times)))
    with doors._door("token 3") as port:
        found = doors._visit("token", "3", HERE, port)
        assert found == (0.0, 1.0)
        assert not isinstance(doors._visit("token", "3", HERE, port), str)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_a_door_is_open_to_both_kinds_of_addresses() -> None:
    with doors._door("token 3") as port:
        for address in (HERE, "::1"):
            found = doors._visit("token", "3", address, port)
            assert not isinstance(found, str), found


def test_somebody_else_is_not_taken_for_a_node() -> None:
    with doors._door("token 4") as port:
        said = doors._visit("token", "3", HERE, port)
    assert said == f"somebody else answers at {HERE} port {port}"


def test_a_closed_port_and_a_silent_one_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with doors._door("token 3") as port:
        pass
    assert doors._visit("token", "3", HERE, port) == f"Connection refused (port {port})"
    monkeypatch.setattr(doors, "_SECONDS", 0.2)
    with socket.create_server((HERE, 0)) as silent:
        port = silent.getsockname()[1]
        assert doors._visit("token", "3", HERE, port) == f"timed out (port {port})"
