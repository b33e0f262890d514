"""Token ids against FlagEmbedding's, truncated or not."""

from __future__ import annotations

from typing import Any

import pytest
from FlagEmbedding.utils.tokenizer_compat import prepare_for_model_compat
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.processors import TemplateProcessing

from bge_worker.engine.manifest import TOKENIZER, Manifest
from bge_worker.engine.tokenizer import Tokenizer, open_tokenizer
from bge_worker.errors import StartError
from conftest import MODELS

QUERY = "Как градиентный спуск находит минимум?"


@pytest.mark.parametrize("max_length", [3, 17, 100, 8192])
def test_token_ids_equal_flagembedding(bench: Any, max_length: int) -> None:
    tokenizer = bench.oracle.embedder.tokenizer
    encoded = bench.engine.encode_texts(bench.texts, max_length)
    reference = tokenizer(bench.texts, truncation=True, max_length=max_length)["input_ids"]
    assert [text.ids for text in encoded] == reference
    untruncated = tokenizer(bench.texts)["input_ids"]
    assert [text.untruncated_length for text in encoded] == [len(ids) for ids in untruncated]
    assert [text.truncated for text in encoded] == [len(ids) > max_length for ids in untruncated]


@pytest.mark.parametrize("max_length", [17, 100, 1024])
def test_pairs_equal_flagembedding(bench: Any, max_length: int) -> None:
    """Compare with FlagEmbedding's own code wherever it keeps its own ids.

    Under transformers 5 it decodes query and document and encodes them again. Where that changes
    the ids (beside `<unk>`, at some truncations) the rule is that of transformers 4: join them.
    """
    tokenizer = bench.oracle.reranker.tokenizer

    def ids_of(text: str, limit: int | None = None) -> list[int]:
        options = {} if limit is None else {"max_length": limit, "truncation": True}
        return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def survive_decoding(ids: list[int]) -> bool:
        return ids == ids_of(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    join = tokenizer.__dict__.pop("prepare_for_model")
    try:
        compared = 0
        for text in bench.texts:
            (pair,) = bench.engine.encode_pairs([QUERY], [text], max_length)
            query, document = ids_of(QUERY, max_length * 3 // 4), ids_of(text, max_length)
            assert pair.ids == join(query, document, max_length=max_length)["input_ids"]
            if survive_decoding(query) and survive_decoding(document):
                compared += 1
                reference = prepare_for_model_compat(
                    tokenizer, query, document, truncation="only_second", max_length=max_length
                )
                assert pair.ids == reference["input_ids"]
        assert compared > 0.75 * len(bench.texts)
    finally:
        tokenizer.prepare_for_model = join


def test_special_tokens_around_token_ids_are_not_doubled(packed: Any) -> None:
    (text,) = packed.encode_texts(["море и суша"], 8192)
    for ids in (text.ids, text.ids[1:], text.ids[:-1], text.ids[1:-1]):
        assert packed.encode_texts([ids], 8192) == [text]


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Any) -> None:
    (tmp_path / TOKENIZER).write_text("{}")
    with pytest.raises(StartError, match="is not a tokenizer"):
        open_tokenizer(tmp_path / TOKENIZER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fast: fast.add_tokens(["new"]), "tokens; the model"),
        (
            lambda fast: setattr(
                fast,
                "post_processor",
                TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)]),
            ),
            "special tokens are not placed",
        ),
    ],
    ids=["larger vocabulary", "another template"],
)
def test_a_tokenizer_of_another_model_is_refused(runtimes: Any, change: Any, message: str) -> None:
    folder = runtimes("packed") / MODELS[0]
    fast: FastTokenizer = open_tokenizer(folder / TOKENIZER)
    change(fast)
    with pytest.raises(StartError, match=message):
        Tokenizer(fast, Manifest.read(folder).config)
