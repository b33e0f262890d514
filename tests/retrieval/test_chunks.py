"""Chunks of documents: how they are cut, written, replaced, and found as documents."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer

from bge_client import AsyncClient, Client, ConfigurationError, ProtocolError, ValidationError
from bge_retrieval import (
    AsyncHybridSearch,
    AsyncStore,
    Chunker,
    CollectionMetadata,
    HybridSearch,
    Migration,
    Plan,
    ServerTokenizer,
    Store,
    TokenizerFile,
    index,
    tokens,
)
from bge_retrieval.chunks import cut_documents
from bge_retrieval.documents import chunk_in, parse_documents, without_texts
from fakes.scripted import Scripted, status
from points import contents


@pytest.fixture(scope="module")
def tokenizer_path(checkpoints: Path) -> Path:
    return checkpoints / "bge-m3" / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> TokenizerFile:
    return TokenizerFile(tokenizer_path)


def long_documents(passages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Documents of 8 passages each."""
    groups = [passages[start : start + 8] for start in range(0, len(passages), 8)]
    return [
        {
            "_id": f"long-{number}",
            "title": group[0]["title"],
            "text": "\n\n".join(passage["text"] for passage in group),
        }
        for number, group in enumerate(groups)
    ]


def stored_chunks(store: Store) -> dict[Any, dict[str, Any]]:
    """The chunks in the collection `c`, by document and number."""
    chunks = (chunk_in(payload) or {} for payload, _ in contents(store, "c").values())
    return {(chunk["document"], chunk["number"]): chunk for chunk in chunks}


def test_a_chunk_has_at_most_its_tokens_with_the_title(
    tokenizer: TokenizerFile, tokenizer_path: Path, passages: list[dict[str, Any]]
) -> None:
    chunker = Chunker(tokenizer, tokens=128, overlap=16, title_field="title")
    reference = HuggingFaceTokenizer.from_file(str(tokenizer_path))
    documents = parse_documents(long_documents(passages), ["text"])
    for document, parts in chunker.cut(documents, ["text"]):
        title = document.payload["title"]
        assert len(parts) > 4
        end = 0
        for part in parts:
            chunk = part.payload["_chunk"]
            assert len(reference.encode(part.text).ids) <= 128 + 1  # a cut may split a token
            assert part.text == f"{title}\n{document.text[chunk['start'] : chunk['end']]}"
            assert "text" not in part.payload
            assert not document.text[end : chunk["start"]].strip()  # no character is lost
            end = chunk["end"]
        assert end == len(document.text)


def test_a_short_document_is_one_chunk(tokenizer: TokenizerFile) -> None:
    documents = parse_documents([{"_id": 7, "text": "море", "year": 1}], ["text"])
    ((_, (chunk,)),) = Chunker(tokenizer).cut(documents, ["text"])
    assert chunk.payload == {
        "_id": 7,
        "year": 1,
        "_chunk": {
            "document": 7,
            "number": 0,
            "start": 0,
            "end": 4,
            "text": "море",
            "count": 1,
        },
    }


@pytest.mark.parametrize("limit", [200_000, 1_000])
def test_the_server_cuts_as_the_file_does(
    worker: Client,
    tokenizer: TokenizerFile,
    passages: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
) -> None:
    monkeypatch.setattr(tokens, "REQUEST_CHARACTERS", limit)
    texts = [document["text"] for document in long_documents(passages)] + [""]
    by_servers = ServerTokenizer(worker).tokens(texts)
    expected = tokenizer.tokens(texts)
    if limit > 1_000:
        assert by_servers == expected
    for by_server, by_file in zip(by_servers, expected, strict=True):
        assert abs(len(by_server) - len(by_file)) <= sum(map(len, texts)) // limit


def test_an_endpoint_without_tokenize_is_named() -> None:
    with Scripted() as endpoint, Client(endpoint.url) as client:
        endpoint.on("POST /tokenize", status(200, [{"tokens": 1}]))
        with pytest.raises(ProtocolError, match="no list of tokens"):
            ServerTokenizer(client).tokens(["море"])
        endpoint.on("POST /tokenize", status(404))
        with pytest.raises(ConfigurationError, match=r"no /tokenize: .* tokenizer\.json"):
            ServerTokenizer(client).tokens(["море"])


@given(st.text(alphabet="аб 我。.\n", max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_parts_of_a_text_have_all_its_tokens(text: str, first: int, last: int) -> None:
    starts = list(range(0, len(text), 2))
    counter = tokens.TokenCounter(text, starts)
    first, last = sorted((min(first, len(text)), min(last, len(text))))
    if text.index(text[first:last]) == first:
        parts = text[:first], text[first:last]
        assert counter(text[:last]) == sum(map(counter, parts))


def test_a_changed_document_replaces_its_chunks(
    store: Store, worker: Client, tokenizer: TokenizerFile, passages: list[dict[str, Any]]
) -> None:
    chunker = Chunker(tokenizer, tokens=128, overlap=0)
    documents = long_documents(passages)[:4]
    index(store, worker, "c", documents, chunker=chunker)
    before = stored_chunks(store)
    report = index(store, worker, "c", documents, chunker=chunker)
    assert (report.unchanged, report.written) == (len(before), 0)

    longer = documents[0] | {"text": documents[0]["text"] + "\n\nНовый абзац в конце."}
    shorter = documents[1] | {"text": documents[1]["text"][:300]}
    changed = [longer, shorter, *documents[2:]]
    report = index(store, worker, "c", changed, chunker=chunker)
    after = stored_chunks(store)
    by_document = {id: [n for owner, n in after if owner == id] for id, _ in after}
    for id, numbers in by_document.items():
        assert sorted(numbers) == list(range(after[id, 0]["count"]))
    assert len(after) < len(before)
    assert report.unchanged > len(before) // 2
    assert index(store, worker, "c", changed, chunker=chunker).written == 0


def test_a_run_killed_after_deleting_can_be_run_again(
    store: Store, worker: Client, tokenizer: TokenizerFile, passages: list[dict[str, Any]]
) -> None:
    chunker = Chunker(tokenizer, tokens=64, overlap=0)
    documents = long_documents(passages)[:1]
    index(store, worker, "c", documents, chunker=chunker)
    shorter = [documents[0] | {"text": documents[0]["text"][:300]}]
    for _ in range(2):  # the first is never written
        parsed = parse_documents(shorter, ["text"])
        next(cut_documents(store, "c", parsed, chunker, ["text"]))
    index(store, worker, "c", shorter, chunker=chunker)
    (count,) = (chunk["count"] for chunk in stored_chunks(store).values() if "count" in chunk)
    assert len(stored_chunks(store)) == count < 12


def test_what_chunks_cannot_be_cut_so_is_refused(
    store: Store, worker: Client, tokenizer: TokenizerFile
) -> None:
    documents = [{"id": 1, "text": "море"}]
    chunker = Chunker(tokenizer, title_field="title")
    index(store, worker, "c", documents, chunker=chunker)
    with pytest.raises(ConfigurationError, match=r"was created with `chunks` .*Given: None"):
        index(store, worker, "c", documents)
    with pytest.raises(ConfigurationError, match=r"'tokens': 512.*Given: .*'tokens': 64"):
        index(store, worker, "c", documents, chunker=Chunker(tokenizer, tokens=64, overlap=0))
    with pytest.raises(ValidationError, match="document 2 occurs twice"):
        index(store, worker, "c", [{"id": 2, "text": "а"}] * 2, chunker=chunker)
    long_title = [{"id": 3, "text": "суша"}, {"id": 4, "text": "море", "title": "море " * 300}]
    with pytest.raises(ValidationError, match=r"document 4: the title must leave half .* 512"):
        index(store, worker, "c", long_title, chunker=chunker)
    assert {document for document, _ in stored_chunks(store)} == {1, 2, 3}
    with pytest.raises(ConfigurationError, match=r"must not be one of `text_fields`\. Given"):
        index(store, worker, "c", documents, chunker=chunker, text_fields=["title", "text"])
    for options in ({"tokens": 31}, {"tokens": 8193}, {"overlap": 256}, {"overlap": -1}):
        with pytest.raises(ConfigurationError, match=r"must be from .* Given: "):
            Chunker(tokenizer, **options)


@pytest.mark.parametrize(
    ("paths", "changes"),
    [
        (["page.text"], {"page": {"n": 1}}),
        (["list.0"], {"list": [None, {"text": "d"}]}),
        (["list.1.text", "none.at.all", "list.9"], {"list": ["c", {}]}),
    ],
)
def test_a_payload_without_its_texts(paths: list[str], changes: dict[str, Any]) -> None:
    payload = {"text": "a", "page": {"text": "b", "n": 1}, "list": ["c", {"text": "d"}]}
    before = json.dumps(payload)
    assert without_texts(payload, paths) == payload | changes
    assert without_texts(payload, ["text"]).keys() == {"page", "list"}
    assert json.dumps(payload) == before


def test_a_document_may_have_the_key_of_chunks(store: Store, worker: Client) -> None:
    index(store, worker, "c", [{"_id": "a", "text": "море", "_chunk": {"page": 3}}])
    (hit,) = HybridSearch(store, worker, "c").search("море", neighbours=1)
    assert (hit.document_id, hit.neighbours) == ("a", {})


def test_a_search_returns_documents_by_their_best_chunk_with_its_neighbours(
    store: Store, worker: Client, tokenizer: TokenizerFile, passages: list[dict[str, Any]]
) -> None:
    chunker = Chunker(tokenizer, tokens=64, overlap=0)
    documents = [{**passages[0], "_id": 1}, *long_documents(passages)]
    index(store, worker, "c", documents, chunker=chunker)
    query = passages[40]["title"]
    for plan in (Plan(), Plan(sparse=False), Plan(rerank=10)):
        result = HybridSearch(store, worker, "c", plan).search(query, 5, neighbours=2)
        ids = [hit.document_id for hit in result]
        assert len(set(ids)) == len(ids) == 5
        assert result.points >= 100
        chunks = stored_chunks(store)
        for hit in result:
            chunk = chunk_in(hit.payload)
            assert chunk is not None
            assert hit.text == chunk["text"]
            document, number = chunk["document"], chunk["number"]
            near = {n for d, n in chunks if d == document and 0 < abs(n - number) <= 2}
            assert hit.neighbours == {n: chunks[document, n]["text"] for n in near}
    with pytest.raises(ConfigurationError, match="`neighbours` must be at least 0"):
        HybridSearch(store, worker, "c").search(query, neighbours=-1)


def test_a_migrated_collection_of_chunks_is_searched_as_such(
    store: Store, worker: Client, tokenizer: TokenizerFile, passages: list[dict[str, Any]]
) -> None:
    chunker = Chunker(tokenizer, tokens=128, overlap=0)
    index(store, worker, "c", long_documents(passages)[:2], chunker=chunker)
    Migration(store, worker, "c", "d", text_fields=["_chunk.text"]).run()
    assert CollectionMetadata.load(store, "d").chunks == chunker.metadata(["text"])
    result = HybridSearch(store, worker, "d").search("море", 10)
    assert (len(result), result.points > 2) == (2, True)


def test_asyncio_finds_the_same_neighbours(
    qdrant: Store,
    qdrant_url: str,
    served: str,
    worker: Client,
    tokenizer: TokenizerFile,
    passages: list[dict[str, Any]],
) -> None:
    chunker = Chunker(tokenizer, tokens=64, overlap=0)
    index(qdrant, worker, "c", long_documents(passages)[:3], chunker=chunker)
    expected = HybridSearch(qdrant, worker, "c").search("море", 3, neighbours=1)

    async def search() -> Any:
        async with AsyncClient(served) as client, AsyncStore.open(url=qdrant_url) as store:
            return await AsyncHybridSearch(store, client, "c").search("море", 3, neighbours=1)

    hits = asyncio.run(search())
    assert [hit.neighbours for hit in hits] == [hit.neighbours for hit in expected]
    assert hits[0].neighbours
