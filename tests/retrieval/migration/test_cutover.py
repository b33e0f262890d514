"""Moving an alias to the target and back loses no change."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from bge_client import Client, ConfigurationError
from bge_retrieval import Migration, MigrationError, Store, drop_old, index, roll_back, sync
from bge_retrieval.migration import cutover
from conftest import ROOT
from fakes.killed_client import Killed
from points import other_model_vector, payloads, put

UUID = "5c56c793-69f3-4fbf-87e6-c4bf54c28c26"


def before_cutover(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]
) -> None:
    """Call `change` just before the alias is moved."""
    point_alias = store.point_alias

    def point_alias_late(alias: str, collection: str) -> None:
        if collection == "new":
            change()
        point_alias(alias, collection)

    monkeypatch.setattr(store, "point_alias", point_alias_late)


def test_changes_at_the_cutover_are_copied_or_reported(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        put(old, (777, {"text": "опоздавший"}), (UUID, {"text": "изменён"}))
        put(old, (3, {"text": "изменён"}))
        old.delete("old", [5])

    put(old, (UUID, {"text": "море"}))
    before_cutover(old, monkeypatch, change)
    report = Migration(old, worker, "live", "new").run()
    assert payloads(old, "new")[777] == {"text": "опоздавший"}
    assert (report.late, report.only_in_target) == ([3, UUID], [5])
    with pytest.raises(MigrationError, match=rf"2 points of .* cutover, .*: 3, {UUID}\. Copy them"):
        drop_old(old, "live")
    index(old, worker, "live", [{"id": 3, "text": "изменён"}])
    old.delete("old", [3, UUID])
    assert drop_old(old, "live") == "old"


def test_the_source_is_kept_until_the_late_changes_that_are_not_recorded_are_copied(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutover, "MAX_REPORTED_IDS", 2)
    changed = [(number, {"text": f"изменён {number}"}) for number in range(3)]
    before_cutover(old, monkeypatch, lambda: put(old, *changed))
    Migration(old, worker, "live", "new").run()
    for number in range(3):
        with pytest.raises(MigrationError, match=f"3 points .* changed.* {3 - number} differ"):
            drop_old(old, "live")
        old.delete("old", [number])
    assert drop_old(old, "live") == "old"


def test_after_a_kill_at_the_cutover_the_next_run_reports_late_changes(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(alias: str, collection: str) -> None:
        put(old, (777, {"text": "опоздавший"}))
        point_alias(alias, collection)
        raise Killed

    point_alias = old.point_alias
    monkeypatch.setattr(old, "point_alias", killed)
    with pytest.raises(Killed):
        Migration(old, worker, "live", "new").run()
    monkeypatch.undo()
    with pytest.raises(MigrationError, match="interrupted at the cutover: run it again"):
        drop_old(old, "live")
    assert Migration(old, worker, "live", "new").run().late == [777]
    with pytest.raises(MigrationError, match=r"changed at the cutover, .*: 777"):
        drop_old(old, "live")


def test_a_run_stops_once_another_run_has_cut_over(
    old: Store, worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes to the target after the cutover are neither overwritten nor deleted."""
    monkeypatch.setattr(sync, "PAGE", 4)
    is_cut_over = False

    def other_run(_: int) -> None:
        nonlocal is_cut_over
        if not is_cut_over:
            is_cut_over = True
            Migration(old, worker, "live", "new").run()
            index(old, worker, "live", [{"id": 1, "text": "изменён"}, {"id": 777, "text": "нов"}])

    with pytest.raises(MigrationError, match="another run has pointed alias `live` to `new`"):
        Migration(old, worker, "live", "new", progress=other_run).run()
    assert payloads(old, "new")[1] == {"id": 1, "text": "изменён"}
    assert payloads(old, "new")[777] == {"id": 777, "text": "нов"}


def test_a_reader_never_sees_a_missing_or_a_mixed_collection(old: Store, worker: Client) -> None:
    """The reader knows both schemas; each response must belong to one of them."""
    old_ids, seen, stop = set(payloads(old, "old")), [], threading.Event()
    query = other_model_vector({})

    def read() -> None:
        while not stop.is_set():
            try:
                vectors = old.client.get_collection("live").config.params.vectors
                seen.append("new" if isinstance(vectors, dict) else "old")
                page, _ = old.client.scroll("live", limit=100)
                assert {record.id for record in page} == old_ids
                if seen[-1] == "old" and old.aliases()["live"] == "old":
                    assert len(old.client.query_points("live", query=query, limit=5).points) == 5
            except Exception as error:
                seen.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    Migration(old, worker, "live", "new").run()
    while seen[-1] == "old":
        pass
    stop.set()
    reader.join()
    assert set(seen) == {"old", "new"}
    assert seen == sorted(seen, reverse=True)


def test_roll_back_migrate_again_and_drop_the_source(old: Store, worker: Client) -> None:
    Migration(old, worker, "live", "new").run()
    assert roll_back(old, "live") == "old"
    assert old.aliases() == {"live": "old"}
    with pytest.raises(ConfigurationError, match="points to `old`, which is not the target"):
        drop_old(old, "live")
    put(old, (600, {"text": "в старую, пока она снова в ходу"}))
    Migration(old, worker, "live", "new").run()
    assert 600 in payloads(old, "new")
    old.point_alias("other", "old")
    with pytest.raises(ConfigurationError, match="`old` is still in use by alias `other`"):
        drop_old(old, "live")
    old.point_alias("other", "new")
    assert drop_old(old, "live") == "old"
    assert not old.exists("old")
    with pytest.raises(ConfigurationError, match="`old`, the source of `new`, does not exist"):
        roll_back(old, "live")
    with pytest.raises(ConfigurationError, match="already points to `new`, and the source `old`"):
        Migration(old, worker, "live", "new")


@pytest.mark.parametrize("names", [("live", "new"), ("old", "new")])
def test_after_the_cutover_the_target_is_not_overwritten(
    old: Store, worker: Client, names: tuple[str, str]
) -> None:
    Migration(old, worker, "live", "new").run()
    index(
        old, worker, "live", [{"id": 5000, "text": "написан после"}, {"id": 3, "text": "изменён"}]
    )
    put(old, (5001, {"text": "не туда"}))
    report = Migration(old, worker, *names).run()
    assert (report.written, report.deleted) == (0, 0)
    assert payloads(old, "new")[5000] == {"id": 5000, "text": "написан после"}
    assert payloads(old, "new")[3] == {"id": 3, "text": "изменён"}


def test_with_the_documented_writes_to_both_a_rollback_loses_nothing(
    old: Store, worker: Client
) -> None:
    Migration(old, worker, "live", "new").run()
    page = (ROOT / "docs" / "after-migration.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    example: dict[str, Any] = {}
    exec(code, example)

    def previous_vectors(texts: list[str]) -> list[list[float]]:
        return [other_model_vector({"text": text}) for text in texts]

    changed = {3: {"text": "изменён"}, 777: {"text": "новый"}}
    example["write"](old, worker, previous_vectors, changed)
    example["delete"](old, [5])
    assert payloads(old, "new") == payloads(old, "old")
    assert payloads(old, "old").items() >= changed.items()
    roll_back(old, "live")
    assert Migration(old, worker, "live", "new").run().written == 0


def test_after_a_rollback_writes_to_the_target_are_not_lost(old: Store, worker: Client) -> None:
    Migration(old, worker, "live", "new").run()
    index(old, worker, "live", [{"id": 5000, "text": "написан после"}])
    roll_back(old, "live")
    message = "`new` is or was in use, and 1 of its points differ from `old`: 5000"
    with pytest.raises(MigrationError, match=message):
        Migration(old, worker, "live", "new").run()
    assert 5000 in payloads(old, "new")


def test_a_target_behind_another_alias_can_be_cut_over(old: Store, worker: Client) -> None:
    Migration(old, worker, "old", "new").run()
    old.point_alias("preview", "new")
    put(old, (600, {"text": "ещё одна"}))
    Migration(old, worker, "live", "new").run()
    assert old.aliases() == {"live": "new", "preview": "new"}
    assert 600 in payloads(old, "new")
