from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import (
    CohereDocumentEmbedder,
    CohereTextEmbedder,
)


def embed(url, key, model, texts):
    options = {"api_base_url": url, "api_key": Secret.from_token(key), "model": model}
    query = CohereTextEmbedder(**options).run(texts[0])
    embedder = CohereDocumentEmbedder(**options)
    reply = embedder.run([Document(content=text) for text in texts[1:]])
    return [query["embedding"], *(document.embedding for document in reply["documents"])]
