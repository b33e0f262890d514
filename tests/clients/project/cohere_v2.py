import cohere


def embed(url, key, model, texts):
    client = cohere.ClientV2(api_key=key, base_url=url)
    reply = client.embed(
        model=model, texts=texts, input_type="search_document", embedding_types=["float"]
    )
    return reply.embeddings.float_


def rerank(url, key, model, query, documents):
    client = cohere.ClientV2(api_key=key, base_url=url)
    reply = client.rerank(model=model, query=query, documents=documents)
    return [(result.index, result.relevance_score) for result in reply.results]
