"""A client used before a fork shares no connection and no lock with the child.

Each test forks in a subprocess, because pytest's process has threads.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from fakes.qdrant_server import QdrantServer
from fakes.scripted import Scripted, completed

FORKING = """
import os, signal, sys, threading
import numpy as np, requests
from bge_client import Client, ConfigurationError
from fakes.scripted import vector_of

url = sys.argv[1]

def in_child(action):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a deadlock ends the child
        action()
        sys.exit(0)
    return pid

def exit_code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
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
STORE = """
from bge_client.qdrant import Store

store = Store.open(url=url)

def calls(name):
    for number in range(50):
        point = {"id": number + 1, "vector": {}, "payload": {"name": name}}
        store.upsert(name, [point])
        (record,) = store.retrieve(name, [number + 1])
        assert record.payload == {"name": name}, record

names = ["parent", "one", "two", "three", "four"]
for name in names:
    store.create_collection(name, vectors_config={})
store.aliases()
children = [in_child(lambda name=name: calls(name)) for name in names[1:]]
calls("parent")
print([exit_code(child) for child in children])
"""
FOLDER = """
from bge_client.qdrant import Store

store = Store.open(path=url)

def use():
    try:
        store.aliases()
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        store.close()
        sys.exit(7)

codes = [exit_code(in_child(use))]
try:
    Store.open(path=url)
except ConfigurationError:
    codes.append("locked")
print(codes, store.aliases())
store.close()
"""


def run_forking(program: str, argument: str) -> tuple[str, str]:
    """Run the program and return its stdout and stderr."""
    run = subprocess.run(
        [sys.executable, "-c", FORKING + program, argument],
        cwd=ROOT / "tests",  # for `fakes`
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip(), run.stderr


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


def test_store_has_its_own_connections_in_each_child() -> None:
    with QdrantServer() as server:  # not "127.0.0.1": Qdrant's client pools no connections to it
        out, err = run_forking(STORE, server.url.replace("127.0.0.1", "127.1"))
    assert out == "[0, 0, 0, 0]", err


def test_local_mode_folder_stays_with_the_parent(tmp_path: Path) -> None:
    out, err = run_forking(FOLDER, str(tmp_path))
    assert out == "[7, 'locked'] {}", err
    assert "open a Store after the fork" in err
