from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference


def embed(url, key, model, texts):
    embedding = TextEmbeddingsInference(base_url=url, auth_token=key, model_name=model)
    documents = embedding.get_text_embedding_batch(texts[1:])
    return [embedding.get_query_embedding(texts[0]), *documents]
