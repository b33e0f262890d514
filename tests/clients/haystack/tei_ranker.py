from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker


def rerank(url, key, model, query, documents):
    ranker = HuggingFaceTEIRanker(url=url, token=Secret.from_token(key))
    ranked = ranker.run(query, [Document(content=text) for text in documents])["documents"]
    return [(documents.index(document.content), document.score) for document in ranked]
