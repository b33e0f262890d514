from langchain_openai import OpenAIEmbeddings


def embed(url, key, model, texts):
    embeddings = OpenAIEmbeddings(
        base_url=url, api_key=key, model=model, check_embedding_ctx_length=False
    )
    return [embeddings.embed_query(texts[0]), *embeddings.embed_documents(texts[1:])]
