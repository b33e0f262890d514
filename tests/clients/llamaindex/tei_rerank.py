from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference


def rerank(url, key, model, query, documents):
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in documents]
    reranker = TextEmbeddingInference(base_url=url, auth_token=f"Bearer {key}")
    ranked = reranker.postprocess_nodes(nodes, query_str=query)
    return [(documents.index(node.text), node.score) for node in ranked]
