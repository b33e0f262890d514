"""Choice of the provider, and vectors of two models never mixed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bge_client import Client, Endpoint, JinaClient, Route, Router, errors, retry
from bge_client.providers import endpoint as endpoints
from fakes.scripted import Scripted, completed, failed, jina_embeddings, jina_rerank, status

TEXTS = ["море", "суша"]
JINA = "jina/jina-embeddings-v3/8"
HEALTHY = status(200, {"jobs": {}, "workers": {"idle": 0, "unhealthy": 0}})
NO_WORKER = status(200, {"jobs": {"inQueue": 1}, "workers": {"idle": 0}})
BROKEN = status(200, {"jobs": {}, "workers": {"idle": 0, "unhealthy": 2}})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MIN_PAUSE", 0.001)


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    """A fake BGE endpoint that serves Jina's paths too."""
    with Scripted() as endpoint:
        endpoint.on("POST /runsync", completed)
        endpoint.on("POST /v1/embeddings", jina_embeddings)
        endpoint.on("POST /v1/rerank", jina_rerank)
        yield endpoint


@pytest.fixture
def route(endpoint: Scripted) -> Iterator[Any]:
    """A function that makes a router of two equal routes."""
    routers = []

    def make_router(provider: str = "bge", fallback: bool = False, **options: Any) -> Router:
        client, jina = Client(endpoint.url, timeout=10), JinaClient("key", base=endpoint.url)
        bge = Endpoint(client, check_health=provider == "auto")
        providers = {"bge": [bge, jina] if fallback else [bge], "auto": [bge, jina]}
        route = Route("embeddings", providers.get(provider, [jina]), fallback)
        routers.append(Router(route, route, **options))
        return routers[-1]

    yield make_router
    for made in routers:
        made.close()


def test_bge_is_the_default_provider(route: Any) -> None:
    result = route().embed(TEXTS)
    assert (result.provider, result.fingerprint) == ("bge", "f")


def test_fallback_to_jina_is_opt_in(
    route: Any, endpoint: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.on("POST /runsync", status(400))
    with pytest.raises(errors.HTTPStatusError):
        route().embed(TEXTS)
    with caplog.at_level(logging.WARNING, "bge_client"):
        result = route(fallback=True).embed(TEXTS)
    assert (result.provider, result.fingerprint) == ("jina", JINA)
    assert "embeddings: bge did not answer: HTTP 400" in caplog.text
    assert route(fallback=True).rerank("q", TEXTS).provider == "jina"


def test_a_provider_with_a_fallback_is_asked_three_times_and_the_last_seven(
    endpoint: Scripted,
) -> None:
    env = {"BGE_EMBEDDINGS_ENDPOINT": endpoint.url, "VLLM_BASE_URL": endpoint.url}
    endpoint.on("POST /runsync", status(503))
    endpoint.on("POST /embeddings", status(503))
    refused = pytest.raises(errors.HTTPStatusError)
    with Router.from_env(env | {"EMBEDDINGS_FALLBACKS": "vllm"}) as router, refused:
        router.embed(TEXTS)
    assert endpoint.routes().count("POST /runsync") == 3
    assert endpoint.routes().count("POST /embeddings") == 7


def test_invalid_request_does_not_fall_back_to_jina(route: Any, endpoint: Scripted) -> None:
    endpoint.on("POST /runsync", failed("ValidationError: `texts[0]` has 9000 tokens"))
    with pytest.raises(errors.ValidationError):
        route(fallback=True).embed(TEXTS)


def test_auto_checks_health_once_a_minute(
    route: Any, endpoint: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.on("GET /health", HEALTHY, BROKEN)
    auto = route(provider="auto")
    assert [auto.embed(TEXTS).provider for _ in range(3)] == ["bge"] * 3
    assert endpoint.routes().count("GET /health") == 1
    monkeypatch.setattr(endpoints, "HEALTH_TTL_SECONDS", 0)
    assert auto.embed(TEXTS).provider == "jina"
    endpoint.on("GET /health", status(404))
    assert auto.rerank("q", TEXTS).provider == "jina"


def test_auto_gives_up_on_an_endpoint_that_stays_without_a_worker(
    route: Any, endpoint: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "HEALTH_TTL_SECONDS", 0)
    endpoint.on("GET /health", NO_WORKER)
    auto = route(provider="auto")
    assert auto.embed(TEXTS).provider == "bge"
    monkeypatch.setattr(endpoints, "NO_WORKER_SECONDS", 0.01)
    time.sleep(0.02)
    assert auto.embed(TEXTS).provider == "bge"  # the answer before ended the wait
    endpoint.on("POST /runsync", status(400), completed)
    with pytest.raises(errors.HTTPStatusError):
        auto.embed(TEXTS)
    time.sleep(0.02)
    assert auto.embed(TEXTS).provider == "jina"
    endpoint.on("GET /health", HEALTHY)  # scaled to zero
    assert auto.embed(TEXTS).provider == "bge"


def test_vectors_of_an_unexpected_model_are_refused(route: Any, endpoint: Scripted) -> None:
    bound = route(expect_fingerprint="f", fallback=True)
    assert bound.embed(TEXTS).fingerprint == "f"
    endpoint.on("POST /runsync", status(400))
    with pytest.raises(errors.HTTPStatusError):
        bound.embed(TEXTS)
    assert "POST /v1/embeddings" not in endpoint.routes()
    with pytest.raises(errors.ProbeError, match="of another space than those of f"):
        route(expect_fingerprint="f", provider="jina").embed(TEXTS)
    with pytest.raises(errors.FingerprintError, match=f"Given: those of {JINA}, from jina"):
        route(expect_fingerprint="jina/other/8", provider="jina").embed(TEXTS)


def test_sparse_vectors_are_never_requested_from_jina(route: Any, endpoint: Scripted) -> None:
    with pytest.raises(errors.ConfigurationError, match="neither `sparse` nor `colbert`"):
        route(provider="jina").embed(TEXTS, sparse=True)
    endpoint.on("POST /runsync", status(400))
    with pytest.raises(errors.HTTPStatusError):
        route(fallback=True).embed(TEXTS, sparse=True)
    assert "POST /v1/embeddings" not in endpoint.routes()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "`BGE_EMBEDDINGS_ENDPOINT` is not set"),
        (
            {"EMBEDDINGS_PROVIDER": "openai"},
            "`EMBEDDINGS_PROVIDER` must be one of bge, auto, jina, deep",
        ),
        ({"EMBEDDINGS_FALLBACK_TO_JINA": "yes"}, "must be one of false, true. Given: 'yes'"),
        ({"RERANKER_PROVIDER": "jina"}, "set `JINA_API_KEY`"),
        ({"RERANKER_FALLBACK_TO_JINA": "true"}, "set `JINA_API_KEY`"),
    ],
)
def test_invalid_variable_is_named(env: dict[str, str], message: str) -> None:
    variables = {"BGE_EMBEDDINGS_ENDPOINT": "http://x"} | env if env else {}
    with pytest.raises(errors.ConfigurationError) as caught:
        Router.from_env(variables)
    assert message in str(caught.value)


def test_variables_of_the_contract_are_read(endpoint: Scripted) -> None:
    env = {
        "BGE_EMBEDDINGS_ENDPOINT": "http://127.0.0.1:9",
        "RUNPOD_EMBEDDINGS_ENDPOINT": f"{endpoint.url}/runsync",
        "RUNPOD_API_KEY": "k3y",
        "RERANKER_PROVIDER": "bge",
    }
    with Router.from_env(env) as router:
        assert router.embed("море").count == 1
        assert router.rerank("q", TEXTS)[0].document == "море"
    assert {seen.headers["Authorization"] for seen in endpoint.seen} == {"Bearer k3y"}


def test_only_runpod_gets_its_key_if_a_server_has_its_own(endpoint: Scripted) -> None:
    env = {
        "BGE_EMBEDDINGS_ENDPOINT": endpoint.url,
        "RUNPOD_API_KEY": "k3y",
        "BGE_API_KEY": "own",
    }
    with Router.from_env(env) as router:
        router.embed("море")
    assert endpoint.seen[0].headers["Authorization"] == "Bearer own"


@pytest.mark.parametrize("texts", [{"море": 1}, 5, [], ["море", 5]])
def test_texts_are_checked_before_a_provider_is_chosen(
    route: Any, endpoint: Scripted, texts: Any
) -> None:
    with pytest.raises(errors.ValidationError, match="`texts"):
        route(fallback=True).embed(texts)
    assert endpoint.seen == []


def test_invalid_input_type_is_refused_by_every_provider(route: Any, endpoint: Scripted) -> None:
    jina = JinaClient("key", base=endpoint.url)
    for embed in (route().embed, route(provider="jina").embed, jina.embed):
        with pytest.raises(errors.ConfigurationError, match=r"`input_type`.* Given: 'passage'"):
            embed(TEXTS, input_type="passage")
    assert endpoint.seen == []


@pytest.mark.parametrize("provider", ["bge", "jina"])
def test_both_providers_take_the_same_arguments(
    route: Any, endpoint: Scripted, provider: str
) -> None:
    router = route(provider=provider)
    for top_n in (0, -1):
        with pytest.raises(errors.ConfigurationError, match="`top_n` must be at least 1"):
            router.rerank("q", TEXTS, top_n=top_n)
    assert endpoint.seen == []
    ranked = router.rerank("q", ({"text": text} for text in TEXTS))
    assert {document.document for document in ranked} == set(TEXTS)


def test_fallback_reranks_documents_of_an_iterator(route: Any, endpoint: Scripted) -> None:
    endpoint.on("POST /runsync", status(400))
    assert route(fallback=True).rerank("q", iter(TEXTS)).provider == "jina"


def test_empty_fingerprint_is_refused(route: Any, endpoint: Scripted) -> None:
    for construct in (route, lambda **options: Client(endpoint.url, **options)):
        with pytest.raises(errors.ConfigurationError, match="`expect_fingerprint` must not be"):
            construct(expect_fingerprint="")


def test_mapping_is_the_whole_environment(
    endpoint: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "of-the-process")
    env = {"BGE_EMBEDDINGS_ENDPOINT": endpoint.url}
    for variables in (env, env | {"BGE_API_KEY": "k3y"}):
        with Router.from_env(variables) as router:
            router.embed("море")
    headers = [seen.headers.get("Authorization") for seen in endpoint.seen]
    assert headers == [None, "Bearer k3y"]


def test_on_rerank_gets_the_result_and_its_errors_are_logged_by_type(
    endpoint: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []

    def on_rerank(*arguments: Any) -> None:
        calls.append(arguments)
        raise ValueError("море")

    with Router.from_env({"BGE_RERANKER_ENDPOINT": endpoint.url}, on_rerank=on_rerank) as router:
        result = router.rerank("q", TEXTS, top_n=1)
    ((query, documents, reported, seconds),) = calls
    assert (query, documents, reported) == ("q", TEXTS, result)
    assert 0 < seconds < 10
    assert "on_rerank failed: ValueError" in caplog.text
    assert "море" not in caplog.text
