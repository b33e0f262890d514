from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.jina import JinaDocumentEmbedder, JinaTextEmbedder


def embed(url, key, model, texts):
    options = {"base_url": url, "api_key": Secret.from_token(key), "model": model}
    query = JinaTextEmbedder(**options).run(texts[0])
    embedder = JinaDocumentEmbedder(**options)
    reply = embedder.run([Document(content=text) for text in texts[1:]])
    return [query["embedding"], *(document.embedding for document in reply["documents"])]
