from haystack.components.embedders import OpenAITextEmbedder
from haystack.utils import Secret


def embed(url, key, model, texts):
    embedder = OpenAITextEmbedder(api_base_url=url, api_key=Secret.from_token(key), model=model)
    return [embedder.run(text)["embedding"] for text in texts]
