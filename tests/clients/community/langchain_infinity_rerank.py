from infinity_client import Client
from langchain_community.document_compressors import InfinityRerank


def rerank(url, key, model, query, documents):
    client = Client(base_url=url, headers={"Authorization": f"Bearer {key}"})
    results = InfinityRerank(client=client, model=model).rerank(documents, query)
    return [(result["index"], result["relevance_score"]) for result in results]
