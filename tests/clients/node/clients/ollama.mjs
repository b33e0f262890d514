import { Ollama } from "ollama";

const client = ({ url, key }) =>
  new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } });

export async function embed(server, texts) {
  return (await client(server).embed({ model: "bge-m3", input: texts })).embeddings;
}

export async function embedPrompts(server, texts) {
  const prompts = texts.map((prompt) => client(server).embeddings({ model: "bge-m3", prompt }));
  return (await Promise.all(prompts)).map((reply) => reply.embedding);
}

export async function models(server) {
  return (await client(server).list()).models.map((model) => model.name);
}
