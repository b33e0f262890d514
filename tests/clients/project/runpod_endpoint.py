import runpod


def embed(url, key, model, texts):
    runpod.endpoint_url_base = url
    endpoint = runpod.Endpoint("any-id", api_key=key)
    return endpoint.run_sync({"input": {"texts": texts}})["embeddings"]


def rerank(url, key, model, query, documents):
    runpod.endpoint_url_base = url
    endpoint = runpod.Endpoint("any-id", api_key=key)
    job = endpoint.run({"input": {"query": query, "documents": documents}})
    return [
        (result["index"], result["relevance_score"]) for result in job.output(timeout=60)["results"]
    ]
