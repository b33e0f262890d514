from huggingface_hub import InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings


def embed(url, key, model, texts):
    embeddings = HuggingFaceEndpointEmbeddings(model=model)
    embeddings.client = InferenceClient(model=url, token=key)
    return [embeddings.embed_query(texts[0]), *embeddings.embed_documents(texts[1:])]
