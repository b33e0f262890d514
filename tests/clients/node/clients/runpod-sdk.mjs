import runpodSdk from "runpod-sdk";

const endpoint = ({ url, key }) => runpodSdk(key, { baseUrl: `${url}/v2` }).endpoint("any");

export async function embed(server, texts) {
  return output(await endpoint(server).runSync({ input: { texts } })).embeddings;
}

export async function rerank(server, query, documents) {
  const job = await endpoint(server).runSync({ input: { query, documents } });
  return output(job).results.map((result) => [result.index, result.relevance_score]);
}

/** Submit a job, wait for the end of its stream, and read its status. */
export async function embedQueued(server, texts) {
  const { id } = await endpoint(server).run({ input: { texts } });
  let streamed;
  for await (const item of endpoint(server).stream(id)) streamed = item.output;
  const job = await endpoint(server).status(id);
  if (!job.succeeded || !streamed.embeddings) throw new Error(`no stream or status: ${id}`);
  return output(job).embeddings;
}

export const health = (server) => endpoint(server).health();

function output(job) {
  if (job.error) throw new Error(job.error);
  return job.output;
}
