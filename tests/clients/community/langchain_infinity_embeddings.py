from langchain_community.embeddings import InfinityEmbeddings


def embed(url, key, model, texts):
    embeddings = InfinityEmbeddings(infinity_api_url=url, model=model)
    return [embeddings.embed_query(texts[0]), *embeddings.embed_documents(texts[1:])]
