import litellm


def embed(url, key, model, texts):
    reply = litellm.embedding(model=model, input=texts, api_base=url, api_key=key)
    return [item["embedding"] for item in reply.data]


def rerank(url, key, model, query, documents):
    reply = litellm.rerank(model=model, query=query, documents=documents, api_base=url, api_key=key)
    return [(result["index"], result["relevance_score"]) for result in reply.results]
