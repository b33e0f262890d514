from llama_index.embeddings.openai_like import OpenAILikeEmbedding


def embed(url, key, model, texts):
    embedding = OpenAILikeEmbedding(api_base=url, api_key=key, model_name=model)
    documents = embedding.get_text_embedding_batch(texts[1:])
    return [embedding.get_query_embedding(texts[0]), *documents]
