import OpenAI from "openai";

const client = ({ url, key }) => new OpenAI({ baseURL: `${url}/v1`, apiKey: key });

export async function embed(server, texts) {
  const reply = await client(server).embeddings.create({ model: "bge-m3", input: texts });
  return reply.data.map((item) => item.embedding);
}

export async function models(server) {
  const page = await client(server).models.list();
  return page.data.map((model) => model.id);
}
