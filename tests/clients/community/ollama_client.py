from ollama import Client


def embed(url, key, model, texts):
    client = Client(host=url, headers={"Authorization": f"Bearer {key}"})
    return client.embed(model=model, input=texts).embeddings
