"""The clients that are tested: with each, what to set. `docs/clients.md` is written from this list.

python tests/clients/cases.py    write the page
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parents[1] / "docs" / "clients.md"
SERVER = "http://127.0.0.1:8000"
PROJECT = "project"  # the group of the packages in the project's own environment

EMBED_MODEL, RERANK_MODEL = "bge-m3", "bge-reranker-v2-m3"
Task = Literal["embed", "rerank", "sparse", "similarity"]


@dataclass(frozen=True)
class Case:
    """A client, and the function of the script that calls it: `function`, or else `task`.

    `script` is a path below this folder: its folder is the group, whose packages are in
    `requirements/<group>.txt`. `path` follows the server's address in the base URL. A client that
    names no model has an empty `model`. `error` is a part of the message that the client shows, if
    it cannot work so.
    """

    client: str
    script: str
    path: str
    task: Task = "embed"
    model: str = ""
    note: str = ""
    error: str = ""
    is_normalized: bool = True
    sends_key: bool = True
    shows_errors: bool = True  # the message of the server
    function: str = ""

    @property
    def group(self) -> str:
        return self.script.partition("/")[0]

    @property
    def anchor(self) -> str:
        """The fragment of the script's heading on the page."""
        return re.sub(r"[^\w-]", "", self.script)

    @property
    def id(self) -> str:
        name = self.script.rpartition(".")[0]
        return "-".join([name, self.function or self.task, *self.model.split("/")[:-1]])


def embed(client: str, script: str, path: str, **fields: object) -> Case:
    return Case(client, script, path, **{"model": EMBED_MODEL, **fields})  # type: ignore[arg-type]


def rerank(client: str, script: str, path: str, **fields: object) -> Case:
    return Case(client, script, path, "rerank", **{"model": RERANK_MODEL, **fields})  # type: ignore[arg-type]


LITELLM = "litellm/embedding_and_rerank.py"
CASES = (
    embed("openai `OpenAI`", "project/openai_sync.py", "/v1"),
    embed("openai `AsyncOpenAI`", "project/openai_async.py", "/v1"),
    embed("cohere `ClientV2.embed`", "project/cohere_v2.py", ""),
    rerank("cohere `ClientV2.rerank`", "project/cohere_v2.py", ""),
    embed(
        "huggingface_hub `InferenceClient.feature_extraction`",
        "project/huggingface_hub_client.py",
        "",
        model="",
    ),
    embed(
        "huggingface_hub `InferenceClient.feature_extraction`",
        "project/huggingface_hub_client.py",
        "/embed",
        model="",
    ),
    Case(
        "huggingface_hub `InferenceClient.sentence_similarity`",
        "project/huggingface_hub_similarity.py",
        "",
        "similarity",
    ),
    embed(
        "runpod `Endpoint.run_sync`",
        "project/runpod_endpoint.py",
        "/v2",
        model="",
        note="The URL is a variable of the module. On RunPod leave it as it is.",
        shows_errors=False,
    ),
    rerank(
        "runpod `Endpoint.run`", "project/runpod_endpoint.py", "/v2", model="", shows_errors=False
    ),
    embed(
        "LangChain `OpenAIEmbeddings`",
        "langchain/openai_embeddings.py",
        "/v1",
        note="`check_embedding_ctx_length=False` sends texts.",
    ),
    embed(
        "LangChain `OpenAIEmbeddings` with its defaults",
        "langchain/openai_embeddings_default.py",
        "/v1",
        note="Refused: it sends token ids of OpenAI's tokenizer.",
        error="With LangChain pass `check_embedding_ctx_length=False`",
    ),
    embed("LangChain `CohereEmbeddings`", "langchain/cohere_embeddings.py", ""),
    rerank("LangChain `CohereRerank`", "langchain/cohere_rerank.py", ""),
    embed(
        "LangChain `HuggingFaceEndpointEmbeddings`",
        "langchain/huggingface_embeddings.py",
        "",
        note="The class takes no URL: set its `client` after it is built.",
    ),
    embed(
        "LangChain `HuggingFaceEndpointEmbeddings` with a URL",
        "langchain/huggingface_embeddings_url.py",
        "",
        model="",
        note="Not possible since langchain-huggingface 1.2.2.",
        error="must be a HuggingFace repo ID, not a URL",
    ),
    embed(
        "LangChain `InfinityEmbeddings`",
        "community/langchain_infinity_embeddings.py",
        "/infinity",
        note="Sends no key: only for a server without `BGE_API_KEY`.",
        sends_key=False,
    ),
    rerank(
        "LangChain `InfinityRerank`",
        "community/langchain_infinity_rerank.py",
        "/infinity",
        shows_errors=False,
    ),
    embed(
        "LangChain `JinaEmbeddings`",
        "community/langchain_jina_embeddings.py",
        "/v1/embeddings",
        note="The URL is a constant of the module.",
    ),
    rerank(
        "LangChain `JinaRerank`",
        "community/langchain_jina_rerank.py",
        "/v1/rerank",
        note="The URL is a constant of the module.",
    ),
    embed("infinity-client `embeddings`", "community/infinity.py", "/infinity"),
    rerank("infinity-client `rerank`", "community/infinity.py", "/infinity"),
    embed("ollama `embed`", "community/ollama_client.py", ""),
    embed("ollama `embeddings`", "community/ollama_prompt.py", ""),
    embed("LlamaIndex `OpenAILikeEmbedding`", "llamaindex/openai_like.py", "/v1"),
    embed(
        "LlamaIndex `TextEmbeddingsInference`",
        "llamaindex/tei_embedding.py",
        "",
        shows_errors=False,
    ),
    rerank(
        "LlamaIndex `TextEmbeddingInference` (TEI rerank)",
        "llamaindex/tei_rerank.py",
        "",
        model="",
        note="`auth_token` is the whole header, `Bearer` included.",
        shows_errors=False,
    ),
    rerank("LlamaIndex `JinaRerank`", "llamaindex/jina_rerank.py", "/v1"),
    rerank("LlamaIndex `CohereRerank`", "llamaindex/cohere_rerank.py", ""),
    embed("Haystack `OpenAITextEmbedder`", "haystack/openai_text_embedder.py", "/v1"),
    embed(
        "Haystack `OpenAIDocumentEmbedder`",
        "haystack/openai_document_embedder.py",
        "/v1",
        note="Unless `raise_on_failure=True`, documents without a vector are only logged.",
        shows_errors=False,
    ),
    embed(
        "Haystack `HuggingFaceAPITextEmbedder`",
        "haystack/tei_embedders.py",
        "",
        model="",
        note="Its default, `normalize=False`, is honoured: vectors before normalisation.",
        is_normalized=False,
    ),
    embed(
        "Haystack `HuggingFaceTEISparseTextEmbedder`",
        "haystack/tei_sparse_embedder.py",
        "",
        task="sparse",
        model="",
        shows_errors=False,
    ),
    rerank("Haystack `HuggingFaceTEIRanker`", "haystack/tei_ranker.py", "", model=""),
    embed("Haystack `CohereTextEmbedder`", "haystack/cohere_embedders.py", ""),
    rerank("Haystack `CohereRanker`", "haystack/cohere_ranker.py", ""),
    embed("Haystack `JinaTextEmbedder`", "haystack/jina_embedders.py", "/v1/embeddings"),
    rerank("Haystack `JinaRanker`", "haystack/jina_ranker.py", "/v1/rerank"),
    embed("litellm `openai/`", LITELLM, "/v1", model="openai/bge-m3"),
    embed("litellm `hosted_vllm/`", LITELLM, "/v1", model="hosted_vllm/bge-m3"),
    rerank("litellm `hosted_vllm/`", LITELLM, "/v1", model="hosted_vllm/bge-reranker-v2-m3"),
    embed("litellm `infinity/`", LITELLM, "/infinity", model="infinity/bge-m3"),
    rerank("litellm `infinity/`", LITELLM, "/infinity", model="infinity/bge-reranker-v2-m3"),
    embed("litellm `jina_ai/`", LITELLM, "/v1", model="jina_ai/bge-m3"),
    rerank("litellm `jina_ai/`", LITELLM, "", model="jina_ai/bge-reranker-v2-m3"),
    embed(
        "litellm `huggingface/`",
        "litellm/huggingface.py",
        "/embed",
        model="huggingface/bge-m3",
        note='Without `input_type="feature-extraction"` it looks the model up on huggingface.co.',
    ),
    rerank("litellm `huggingface/`", LITELLM, "", model="huggingface/bge-reranker-v2-m3"),
    embed(
        "litellm `cohere/`",
        LITELLM,
        "/v1/embed",
        model="cohere/bge-m3",
        note="For embeddings `api_base` is the route's whole URL.",
    ),
    rerank("litellm `cohere/`", LITELLM, "", model="cohere/bge-reranker-v2-m3"),
    embed("litellm `ollama/`", LITELLM, "", model="ollama/bge-m3"),
)

NODE = "node/clients/"
NODE_CASES = (
    embed("openai `OpenAI`", f"{NODE}openai.mjs", "/v1"),
    embed("@langchain/openai `OpenAIEmbeddings`", f"{NODE}langchain-openai.mjs", "/v1"),
    embed("cohere-ai `CohereClientV2.embed`", f"{NODE}cohere-ai.mjs", ""),
    embed("cohere-ai `CohereClient.embed`", f"{NODE}cohere-ai.mjs", "", function="embedV1"),
    rerank("cohere-ai `CohereClientV2.rerank`", f"{NODE}cohere-ai.mjs", ""),
    rerank("cohere-ai `CohereClient.rerank`", f"{NODE}cohere-ai.mjs", "", function="rerankV1"),
    embed("@langchain/cohere `CohereEmbeddings`", f"{NODE}langchain-cohere.mjs", ""),
    rerank("@langchain/cohere `CohereRerank`", f"{NODE}langchain-cohere.mjs", ""),
    embed("@huggingface/inference `featureExtraction`", f"{NODE}huggingface.mjs", "/", model=""),
    embed(
        "@huggingface/inference `featureExtraction`",
        f"{NODE}huggingface.mjs",
        "/embed",
        model="",
        function="embedPath",
    ),
    embed("ollama `embed`", f"{NODE}ollama.mjs", ""),
    embed("ollama `embeddings`", f"{NODE}ollama.mjs", "", function="embedPrompts"),
    embed("runpod-sdk `runSync`", f"{NODE}runpod-sdk.mjs", "/v2", model=""),
    embed(
        "runpod-sdk `run`, `stream`, `status`",
        f"{NODE}runpod-sdk.mjs",
        "/v2",
        model="",
        function="embedQueued",
    ),
    rerank("runpod-sdk `runSync`", f"{NODE}runpod-sdk.mjs", "/v2", model=""),
)

INTRODUCTION = f"""<!-- run by: tests/clients/test_clients.py -->
# Clients

Client packages that work unchanged against the HTTP server, here at `{SERVER}`. The API
key is `BGE_API_KEY`. A model's name may be one that `/v1/models` lists, its last part, or an alias
(`BGE_EMBED_ALIASES`, `BGE_RERANK_ALIASES`); clients without one get the model of the route's kind.

Each row is a test: the vectors or scores are those of `/native/embed` or `/native/rerank`, and of a
blank text the client shows the server's error message, unless the note says otherwise. The versions
are in `tests/requirements.txt` and `tests/clients/requirements/`, those of JavaScript in
`tests/clients/node/package.json`; `make test-clients` and `make test-clients-node` test them.

`/reranker` is a base URL for clients of text-embeddings-inference that ask `/info` first, such as
Dify's: it describes the reranker. `/infinity` is Infinity's: documents come back as plain strings.

"""
CODE = """
## Code

The code of each test. `url` is the base URL of the table, in JavaScript the server's address.
"""


def page() -> str:
    scripts = dict.fromkeys(case.script for case in (*CASES, *NODE_CASES) if not case.error)
    tables = f"## Python\n\n{table(CASES)}\n## JavaScript\n\n{table(NODE_CASES)}"
    return INTRODUCTION + tables + CODE + "".join(map(section, scripts))


def table(cases: Iterable[Case]) -> str:
    head = ["| client | base URL | model name | note |", "| --- | --- | --- | --- |"]
    return "".join(f"{line}\n" for line in [*head, *map(row, cases)])


def section(script: str) -> str:
    language = "python" if script.endswith(".py") else "javascript"
    return f"\n### {script}\n\n```{language}\n{(FOLDER / script).read_text('utf-8')}```\n"


def row(case: Case) -> str:
    name = case.client if case.error else f"[{case.client}](#{case.anchor})"
    model = f"`{case.model}`" if case.model else ""
    hidden = "" if case.shows_errors else "Does not show the server's error message."
    note = " ".join(filter(None, [case.note, hidden]))
    return f"| {name} | `{SERVER}{case.path}` | {model} | {note} |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
