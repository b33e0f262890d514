import litellm


def embed(url, key, model, texts):
    reply = litellm.embedding(
        model=model, input=texts, api_base=url, api_key=key, input_type="feature-extraction"
    )
    return [item["embedding"] for item in reply.data]
