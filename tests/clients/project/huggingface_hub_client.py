from huggingface_hub import InferenceClient


def embed(url, key, model, texts):
    client = InferenceClient(model=url, token=key)
    return client.feature_extraction(texts)
