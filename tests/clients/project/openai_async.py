import asyncio

from openai import AsyncOpenAI


async def embed_all(url, key, model, texts):
    async with AsyncOpenAI(base_url=url, api_key=key) as client:
        requests = [client.embeddings.create(model=model, input=text) for text in texts]
        return [reply.data[0].embedding for reply in await asyncio.gather(*requests)]


def embed(url, key, model, texts):
    return asyncio.run(embed_all(url, key, model, texts))
