from langchain_community.embeddings import JinaEmbeddings, jina


def embed(url, key, model, texts):
    jina.JINA_API_URL = url
    embeddings = JinaEmbeddings(jina_api_key=key, model_name=model)
    return [embeddings.embed_query(texts[0]), *embeddings.embed_documents(texts[1:])]
