"""Providers by name: their order, and where they and their keys are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bge_client import ConfigurationError, Router
from bge_client.providers.environment import NAMES, Settings, provider_from, route_from
from bge_client.providers.openai_compatible import OpenAICompatible
from bge_client.providers.presets import PRESETS
from fakes.hosts import SHAPES

ENDPOINT = {"BGE_EMBEDDINGS_ENDPOINT": "http://127.0.0.1:9", "JINA_API_KEY": "k3y-of-jina"}
KEYS = {"DEEPINFRA_API_KEY": "k3y-of-deepinfra", "NOVITA_API_KEY": "k3y-of-novita"}


@pytest.mark.parametrize(
    ("variables", "providers", "fallback"),
    [
        ({}, "bge", False),
        ({"EMBEDDINGS_FALLBACKS": "deepinfra, jina"}, "bge deepinfra jina", True),
        ({"EMBEDDINGS_FALLBACK_TO_JINA": "true"}, "bge jina", True),
        (
            {"EMBEDDINGS_FALLBACKS": "novita", "EMBEDDINGS_FALLBACK_TO_JINA": "true"},
            "bge novita jina",
            True,
        ),
        (
            {"EMBEDDINGS_FALLBACKS": "jina,novita", "EMBEDDINGS_FALLBACK_TO_JINA": "true"},
            "bge jina novita",
            True,
        ),
        (
            {"EMBEDDINGS_PROVIDER": "deepinfra", "EMBEDDINGS_FALLBACKS": "bge"},
            "deepinfra bge",
            True,
        ),
        ({"EMBEDDINGS_PROVIDER": "auto"}, "bge jina", False),
        ({"EMBEDDINGS_PROVIDER": "auto", "EMBEDDINGS_FALLBACKS": "novita"}, "bge novita", True),
        ({"EMBEDDINGS_PROVIDER": "jina", "EMBEDDINGS_FALLBACKS": "jina"}, "jina", True),
        ({"RERANKER_FALLBACKS": "novita", "EMBEDDINGS_FALLBACKS": ""}, "bge", False),
    ],
)
def test_providers_are_used_in_the_given_order(
    variables: dict[str, str], providers: str, fallback: bool
) -> None:
    route = route_from(ENDPOINT | KEYS | variables, "EMBEDDINGS", 10)
    assert [provider.name for provider in route.providers] == providers.split()
    assert route.fallback == fallback
    for provider in route.providers:
        provider.close()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"EMBEDDINGS_FALLBACKS": "deepinfra,openai"}, "`EMBEDDINGS_FALLBACKS` must be one of bge"),
        ({"EMBEDDINGS_FALLBACKS": "deepinfra"}, "set `DEEPINFRA_API_KEY` to use deepinfra"),
        ({"RERANKER_FALLBACKS": "tei"}, "tei has no model for the scores: set `TEI_RERANK_MODEL`"),
        (
            {"EMBEDDINGS_FALLBACKS": "cloudflare", "CLOUDFLARE_API_KEY": "k3y"},
            "set `CLOUDFLARE_ACCOUNT_ID` to use cloudflare",
        ),
        (
            {"EMBEDDINGS_FALLBACKS": "openai_compatible", "OPENAI_COMPATIBLE_EMBEDDING_MODEL": "m"},
            "set `OPENAI_COMPATIBLE_BASE_URL`",
        ),
        ({"EMBEDDINGS_FALLBACKS": "openai_compatible"}, "`OPENAI_COMPATIBLE_EMBEDDING_MODEL`"),
        (
            {"EMBEDDINGS_FALLBACKS": "vllm", "VLLM_BASE_URL": "host:8000"},
            "`VLLM_BASE_URL` must be an http(s) address",
        ),
        ({"BGE_PROBE": "/no/such/file"}, "`BGE_PROBE` cannot be read: No such file"),
    ],
)
def test_a_missing_or_invalid_variable_is_named(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Router.from_env(ENDPOINT | variables)
    assert message in str(caught.value)


def test_presets_have_the_addresses_and_models_of_the_documentation() -> None:
    env = {f"{name.upper()}_API_KEY": "a-long-enough-key" for name in PRESETS}
    env |= {"CLOUDFLARE_ACCOUNT_ID": "an-account"}
    for name, shape in SHAPES.items():
        if name == "openai_compatible":
            continue
        provider = provider_from(name, Settings(env, "EMBEDDINGS"))
        assert isinstance(provider, OpenAICompatible)
        assert provider._transport.url.endswith(shape.prefix)
        assert PRESETS[name].embedding_model == shape.model
        assert PRESETS[name].rerank_model == shape.rerank_model
        assert PRESETS[name].needs_key == shape.has_key
        assert PRESETS[name].max_texts <= shape.max_texts
        provider.close()
    assert {*SHAPES, "bge", "jina"} == {*NAMES}


def test_a_malformed_probe_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({"fingerprint": "f"}), "utf-8")
    with pytest.raises(ConfigurationError, match="the probe is malformed"):
        Router.from_env(ENDPOINT | {"BGE_PROBE": str(path)})
