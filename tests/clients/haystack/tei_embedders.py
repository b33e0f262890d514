from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)


def embed(url, key, model, texts):
    options = {
        "api_type": "text_embeddings_inference",
        "api_params": {"url": url},
        "token": Secret.from_token(key),
    }
    query = HuggingFaceAPITextEmbedder(**options).run(texts[0])
    embedder = HuggingFaceAPIDocumentEmbedder(**options)
    reply = embedder.run([Document(content=text) for text in texts[1:]])
    return [query["embedding"], *(document.embedding for document in reply["documents"])]
