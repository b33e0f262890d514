from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder
from haystack.utils import Secret


def embed(url, key, model, texts):
    embedder = OpenAIDocumentEmbedder(api_base_url=url, api_key=Secret.from_token(key), model=model)
    documents = embedder.run([Document(content=text) for text in texts])["documents"]
    return [document.embedding for document in documents]
