from langchain_cohere import CohereEmbeddings


def embed(url, key, model, texts):
    embeddings = CohereEmbeddings(base_url=url, cohere_api_key=key, model=model)
    return [embeddings.embed_query(texts[0]), *embeddings.embed_documents(texts[1:])]
