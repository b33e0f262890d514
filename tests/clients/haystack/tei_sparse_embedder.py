from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceTEISparseTextEmbedder,
)


def sparse(url, key, model, texts):
    embedder = HuggingFaceTEISparseTextEmbedder(api_base_url=url, token=Secret.from_token(key))
    vectors = [embedder.run(text)["sparse_embedding"] for text in texts]
    return [(vector.indices, vector.values) for vector in vectors]
