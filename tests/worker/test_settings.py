"""Every variable is read; a bad value stops the start and is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_worker.errors import StartError
from bge_worker.settings import Settings, unknown_variables


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings().max_texts == 2048
    assert Settings().concurrency == 32


def test_every_variable_is_read() -> None:
    settings = Settings.from_env(
        {
            "BGE_EMBED_MODEL": "/models/a",
            "BGE_RERANK_MODEL": "",
            "BGE_DEVICE": "cpu",
            "BGE_DTYPE": "float16",
            "BGE_ENGINE": "flagembedding",
            "BGE_ATTENTION": "sdpa",
            "BGE_CUDA_GRAPHS": "0",
            "BGE_MAX_BATCH_TOKENS": "1",
            "BGE_MAX_TEXTS": "2",
            "BGE_MAX_REQUEST_TOKENS": "3",
            "BGE_MAX_QUEUE": "4",
            "BGE_MAX_REPLY_BYTES": "70000",
            "BGE_CONCURRENCY": "6",
            "BGE_API_KEY": "secret\r\n",  # as read from a file
            "BGE_INSECURE": "1",
            "BGE_ACCEPT_TOKEN_IDS": "1",
            "BGE_EMBED_ALIASES": "text-embedding-3-small, e,",
            "BGE_RERANK_ALIASES": "r",
            "BGE_CORS_ORIGINS": "https://app.example",
            "BGE_TRACE_START": "1",
            "BGE_PAGE": "0",
        }
    )
    paths_and_engine = (Path("/models/a"), None, "cpu", "float16", "flagembedding", "sdpa", False)
    names = (("text-embedding-3-small", "e"), ("r",), ("https://app.example",))
    numbers = (1, 2, 3, 4, 70000, 6)
    flags_and_names = (True, True, *names, True, False)
    assert settings == Settings(*paths_and_engine, *numbers, "secret", *flags_and_names)
    assert Settings.from_env({"BGE_API_KEY": "\n"}).api_key is None


@pytest.mark.parametrize(
    ("variable", "value", "limit"),
    [
        ("BGE_DEVICE", "tpu", "one of auto, cuda, cpu"),
        ("BGE_DTYPE", "bfloat16", "one of auto, float16, float32"),
        ("BGE_ENGINE", "", "one of packed, flagembedding"),
        ("BGE_ATTENTION", "varlen", "one of auto, flash, sdpa"),
        ("BGE_MAX_TEXTS", "0", "at least 1"),
        ("BGE_MAX_TEXTS", "-5", "at least 1"),
        ("BGE_MAX_QUEUE", "many", "a whole number"),
        ("BGE_MAX_REPLY_BYTES", "1e6", "a whole number"),
        ("BGE_CONCURRENCY", "2", "at least 3"),
        ("BGE_INSECURE", "yes", "one of 0, 1"),
    ],
)
def test_a_bad_value_is_named_with_the_variable_and_the_limit(
    variable: str, value: str, limit: str
) -> None:
    with pytest.raises(StartError) as caught:
        Settings.from_env({variable: value})
    assert f"`{variable}`" in str(caught.value)
    assert limit in str(caught.value)
    assert f"Given: {value!r}" in str(caught.value)


@pytest.mark.parametrize("variable", ["RUNPOD_ENDPOINT_ID", "PORT_HEALTH"])
def test_the_page_is_off_on_runpod_unless_it_is_turned_on(variable: str) -> None:
    assert Settings.from_env({}).page
    assert not Settings.from_env({variable: "8000"}).page
    assert Settings.from_env({variable: "8000", "BGE_PAGE": "1"}).page


def test_an_alias_names_one_model() -> None:
    with pytest.raises(StartError, match="must differ"):
        Settings.from_env({"BGE_EMBED_ALIASES": "a,b", "BGE_RERANK_ALIASES": "b,c"})


def test_long_or_secret_values_are_not_repeated() -> None:
    with pytest.raises(StartError) as caught:
        Settings.from_env({"BGE_API_KEY": "a key"})
    assert "`BGE_API_KEY` must be printable ASCII without spaces" in str(caught.value)
    assert "a key" not in str(caught.value)
    with pytest.raises(StartError, match=r"`BGE_MAX_TEXTS` .* Given: 5000 characters"):
        Settings.from_env({"BGE_MAX_TEXTS": "9" * 5000})


def test_a_worker_without_any_model_does_not_start() -> None:
    with pytest.raises(StartError, match="both empty"):
        Settings.from_env({"BGE_EMBED_MODEL": "", "BGE_RERANK_MODEL": " "})


def test_an_unknown_variable_is_named_with_the_nearest_and_without_its_value() -> None:
    env = {"BGE_MAX_QUEUES": "secret", "BGE_MODE": "serve", "BGE_ENGINE": "packed", "PATH": "/"}
    (sentence,) = unknown_variables(env)
    assert sentence == (
        "`BGE_MAX_QUEUES` is no variable of this worker. The nearest is `BGE_MAX_QUEUE`"
    )
