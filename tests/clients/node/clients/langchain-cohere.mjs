import { CohereEmbeddings, CohereRerank } from "@langchain/cohere";
import { CohereClient } from "cohere-ai";

const client = ({ url, key }) => new CohereClient({ token: key, environment: url });

export async function embed(server, texts) {
  const embeddings = new CohereEmbeddings({ model: "bge-m3", client: client(server) });
  return embeddings.embedDocuments(texts);
}

export async function rerank(server, query, documents) {
  const reranker = new CohereRerank({ model: "bge-reranker-v2-m3", client: client(server) });
  const results = await reranker.rerank(documents, query);
  return results.map((result) => [result.index, result.relevanceScore]);
}
