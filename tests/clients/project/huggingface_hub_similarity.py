from huggingface_hub import InferenceClient


def similarity(url, key, model, texts):
    client = InferenceClient(model=url, token=key)
    return client.sentence_similarity(texts[0], other_sentences=texts[1:])
