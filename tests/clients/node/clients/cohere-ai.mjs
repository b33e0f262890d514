import { CohereClient, CohereClientV2 } from "cohere-ai";

const v1 = ({ url, key }) => new CohereClient({ token: key, environment: url });
const v2 = ({ url, key }) => new CohereClientV2({ token: key, environment: url });

export async function embed(server, texts) {
  const inputType = "search_document";
  const body = { model: "bge-m3", texts, inputType, embeddingTypes: ["float"] };
  return (await v2(server).embed(body)).embeddings.float;
}

export async function embedV1(server, texts) {
  const body = { model: "bge-m3", texts, inputType: "search_document" };
  return (await v1(server).embed(body)).embeddings;
}

export async function rerank(server, query, documents) {
  return ranking(await v2(server).rerank({ model: "bge-reranker-v2-m3", query, documents }));
}

export async function rerankV1(server, query, documents) {
  return ranking(await v1(server).rerank({ model: "bge-reranker-v2-m3", query, documents }));
}

const ranking = (reply) => reply.results.map((result) => [result.index, result.relevanceScore]);
