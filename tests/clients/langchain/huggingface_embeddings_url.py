from langchain_huggingface import HuggingFaceEndpointEmbeddings


def embed(url, key, model, texts):
    embeddings = HuggingFaceEndpointEmbeddings(model=url, huggingfacehub_api_token=key)
    return embeddings.embed_documents(texts)
