from langchain_community.document_compressors import JinaRerank, jina_rerank


def rerank(url, key, model, query, documents):
    jina_rerank.JINA_API_URL = url
    results = JinaRerank(jina_api_key=key, model=model).rerank(documents, query)
    return [(result["index"], result["relevance_score"]) for result in results]
