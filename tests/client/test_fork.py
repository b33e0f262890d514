"""A client used before a fork shares no connection and no lock with the child."""

from __future__ import annotations

import pytest

from fakes.forking import run_forking
from fakes.scripted import Scripted, completed

MANY_CALLS = """
from fakes.clients import CLIENTS
client = CLIENTS["DRIVER"](url, timeout=10, session=SESSION)

def calls(name):
    for number in range(100):
        text = f"{name} {number}"
        np.testing.assert_array_equal(client.embed(text).dense, [vector_of(text)])

calls("before")
children = [in_child(lambda name=name: calls(f"child {name}")) for name in range(4)]
calls("parent")
print([exit_code(child) for child in children])
"""


LOCKS_HELD = """
client = Client(url, timeout=10)
client.embed("before")
session = client._transport._session
pools = session.get_adapter(url).poolmanager.pools
(idle,) = (pool.pool for pool in pools._container.values())
held, forked = threading.Event(), threading.Event()

def hold():
    with pools.lock, idle.mutex, session.cookies._cookies_lock:
        held.set()
        forked.wait()

threading.Thread(target=hold).start()
held.wait()
child = in_child(lambda: client.embed("child"))
forked.set()
client.embed("parent")
print([exit_code(child)])
"""


HALF_ITERATED = """
client = Client(url, timeout=10)
vectors = client.embed_iter(f"text {number}" for number in range(10_000))
np.testing.assert_array_equal(next(vectors).dense, vector_of("text 0"))

def resume():
    try:
        next(vectors)
    except ConfigurationError:
        sys.exit(7)

child = in_child(resume)
codes = [exit_code(child)]
for number, embedding in enumerate(vectors, 1):
    np.testing.assert_array_equal(embedding.dense, vector_of(f"text {number}"))
print(codes)
"""


@pytest.mark.parametrize(
    ("driver", "session"),
    [("sync", "None"), ("sync", "requests.Session()"), ("async", "None")],
    ids=["own", "passed", "async"],
)
def test_children_and_parent_get_their_own_vectors(driver: str, session: str) -> None:
    program = MANY_CALLS.replace("DRIVER", driver).replace("SESSION", session)
    with Scripted() as endpoint:
        endpoint.on("POST /runsync", completed)
        out, err = run_forking(program, endpoint.url)
    assert out == "[0, 0, 0, 0]", err


def test_lock_held_at_the_fork_does_not_block_the_child() -> None:
    with Scripted() as endpoint:
        endpoint.on("POST /runsync", completed)
        out, err = run_forking(LOCKS_HELD, endpoint.url)
    assert out == "[0]", err


def test_iterator_continues_only_in_its_own_process() -> None:
    with Scripted() as endpoint:
        endpoint.on("POST /runsync", completed)
        out, err = run_forking(HALF_ITERATED, endpoint.url)
    assert out == "[7]", err
