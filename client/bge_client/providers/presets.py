"""Hosts of the same models, read from their documentation. Names of settings: `environment.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A host. `{NAME}` in `base` is a variable of the environment.

    A model that is None is not served. `max_texts` is the host's limit of one request.
    """

    base: str
    documentation: str
    embedding_model: str | None = None
    rerank_model: str | None = None
    max_texts: int = 128
    needs_key: bool = True


PRESETS = {
    "deepinfra": Preset(
        "https://api.deepinfra.com/v1/openai",
        "https://deepinfra.com/BAAI/bge-m3/api",
        embedding_model="BAAI/bge-m3",
    ),
    "novita": Preset(
        "https://api.novita.ai/openai/v1",
        "https://novita.ai/docs/api-reference/model-apis-llm-create-embeddings",
        embedding_model="baai/bge-m3",
        rerank_model="baai/bge-reranker-v2-m3",
    ),
    "siliconflow": Preset(
        "https://api.siliconflow.com/v1",
        "https://docs.siliconflow.com/en/api-reference/embeddings/create-embeddings",
        embedding_model="BAAI/bge-m3",
        rerank_model="BAAI/bge-reranker-v2-m3",
        max_texts=32,
    ),
    "cloudflare": Preset(
        "https://api.cloudflare.com/client/v4/accounts/{CLOUDFLARE_ACCOUNT_ID}/ai/v1",
        "https://developers.cloudflare.com/workers-ai/configuration/open-ai-compatibility",
        embedding_model="@cf/baai/bge-m3",
        max_texts=100,
    ),
    # Servers of one's own, at the address of their documentation's first example.
    "tei": Preset(
        "http://127.0.0.1:8080/v1",
        "https://huggingface.co/docs/text-embeddings-inference/quick_tour",
        embedding_model="BAAI/bge-m3",
        max_texts=32,
        needs_key=False,
    ),
    "infinity": Preset(
        "http://127.0.0.1:7997",
        "https://michaelfeil.eu/infinity/latest",
        embedding_model="BAAI/bge-m3",
        rerank_model="BAAI/bge-reranker-v2-m3",
        needs_key=False,
    ),
    "vllm": Preset(
        "http://127.0.0.1:8000/v1",
        "https://docs.vllm.ai/en/latest/serving/openai_compatible_server",
        embedding_model="BAAI/bge-m3",
        rerank_model="BAAI/bge-reranker-v2-m3",
        needs_key=False,
    ),
    "openai_compatible": Preset(
        "{OPENAI_COMPATIBLE_BASE_URL}",
        "https://platform.openai.com/docs/api-reference/embeddings",
        needs_key=False,
    ),
}
