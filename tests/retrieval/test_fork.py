"""A Store used before a fork shares no connection and no lock with the child."""

from __future__ import annotations

from pathlib import Path

from fakes.forking import run_forking
from fakes.qdrant_server import QdrantServer

STORE = """
from bge_retrieval import Store

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
from bge_retrieval import Store

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

LOCKED = """
from bge_retrieval import Store

store = Store.open(url=url)
thread = threading.Thread(target=store._lock.acquire)
thread.start()
thread.join()
print(exit_code(in_child(store.aliases)))
"""


def test_store_has_its_own_connections_in_each_child() -> None:
    with QdrantServer() as server:  # not "127.0.0.1": Qdrant's client pools no connections to it
        out, err = run_forking(STORE, server.url.replace("127.0.0.1", "127.1"))
    assert out == "[0, 0, 0, 0]", err


def test_local_mode_folder_stays_with_the_parent(tmp_path: Path) -> None:
    out, err = run_forking(FOLDER, str(tmp_path))
    assert out == "[7, 'locked'] {}", err
    assert "open a Store after the fork" in err


def test_a_lock_held_by_a_thread_of_the_parent_is_free_in_the_child() -> None:
    with QdrantServer() as server:
        out, err = run_forking(LOCKED, server.url)
    assert out == "0", err
