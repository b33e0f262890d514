from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.jinaai_rerank import JinaRerank


def rerank(url, key, model, query, documents):
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in documents]
    reranker = JinaRerank(base_url=url, api_key=key, model=model)
    ranked = reranker.postprocess_nodes(nodes, query_str=query)
    return [(documents.index(node.text), node.score) for node in ranked]
