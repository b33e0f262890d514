from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.jina import JinaRanker


def rerank(url, key, model, query, documents):
    ranker = JinaRanker(base_url=url, api_key=Secret.from_token(key), model=model)
    ranked = ranker.run(query, [Document(content=text) for text in documents])["documents"]
    return [(documents.index(document.content), document.score) for document in ranked]
