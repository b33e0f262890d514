import { OpenAIEmbeddings } from "@langchain/openai";

export async function embed({ url, key }, texts) {
  const configuration = { baseURL: `${url}/v1` };
  const embeddings = new OpenAIEmbeddings({ model: "bge-m3", apiKey: key, configuration });
  return embeddings.embedDocuments(texts);
}
