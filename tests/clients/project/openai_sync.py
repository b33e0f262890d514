from openai import OpenAI


def embed(url, key, model, texts):
    with OpenAI(base_url=url, api_key=key) as client:
        reply = client.embeddings.create(model=model, input=texts)
    return [item.embedding for item in reply.data]
