from infinity_client import AuthenticatedClient
from infinity_client.api.default import embeddings
from infinity_client.api.default import rerank as rerank_documents
from infinity_client.models import HTTPValidationError, OpenAIEmbeddingInputText, RerankInput


def embed(url, key, model, texts):
    client = AuthenticatedClient(base_url=url, token=key)
    body = OpenAIEmbeddingInputText(input_=texts, model=model)
    reply = embeddings.sync(client=client, body=body)
    if isinstance(reply, HTTPValidationError):
        raise ValueError(reply.detail[0].msg)
    return [item.embedding for item in reply.data]


def rerank(url, key, model, query, documents):
    client = AuthenticatedClient(base_url=url, token=key)
    body = RerankInput(query=query, documents=documents, model=model)
    reply = rerank_documents.sync(client=client, body=body)
    if isinstance(reply, HTTPValidationError):
        raise ValueError(reply.detail[0].msg)
    return [(result.index, result.relevance_score) for result in reply.results]
