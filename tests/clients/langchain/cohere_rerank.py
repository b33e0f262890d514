from langchain_cohere import CohereRerank


def rerank(url, key, model, query, documents):
    reranker = CohereRerank(base_url=url, cohere_api_key=key, model=model)
    results = reranker.rerank(documents, query)
    return [(result["index"], result["relevance_score"]) for result in results]
