"""Addresses and ports: what the server listens on, and what it refuses."""

from __future__ import annotations

import socket

import pytest

from bge_worker.errors import StartError
from bge_worker.http.server import check_exposed, listen, read_ports
from bge_worker.settings import Settings


@pytest.mark.parametrize(
    ("option", "variables", "ports"),
    [
        (None, {}, [8000]),
        ("8001", {"PORT": "9000"}, [8001]),
        (None, {"PORT": "9000", "PORT_HEALTH": "9000"}, [9000]),
        ("8001", {"PORT_HEALTH": "8002"}, [8001, 8002]),
    ],
)
def test_ports_come_from_the_option_or_the_environment(
    option: str | None, variables: dict[str, str], ports: list[int]
) -> None:
    assert read_ports(option, variables) == ports


@pytest.mark.parametrize("value", ["", "0", "-5", "x", "99999", "9" * 5000])
def test_a_bad_port_is_refused(value: str) -> None:
    for option, variables, name in (
        (value, {}, "--port"),
        (None, {"PORT": value}, "PORT"),
        (None, {"PORT_HEALTH": value}, "PORT_HEALTH"),
    ):
        with pytest.raises(StartError, match=f"`{name}` must be a port, .* 1 to 65535") as caught:
            read_ports(option, variables)
        assert len(str(caught.value)) < 150


def test_an_address_of_other_machines_requires_a_key_or_insecure() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_exposed(host, Settings())
    for host in ("0.0.0.0", "::", "bge.example"):
        with pytest.raises(StartError, match="`BGE_API_KEY` is not set"):
            check_exposed(host, Settings())
        check_exposed(host, Settings(api_key="key"))
        check_exposed(host, Settings(insecure=True))


def test_an_address_that_cannot_be_used_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port)
    with pytest.raises(StartError, match="cannot listen on not a host:8000"):
        listen("not a host", 8000)
