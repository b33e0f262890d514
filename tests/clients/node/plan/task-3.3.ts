// The user's own code: task 3.3 of the migration plan, unchanged.
import { logger } from '../logger';

interface RunPodConfig {
  apiKey: string;
  embeddingsEndpoint: string;
  rerankerEndpoint: string;
  timeout?: number;
}

const getConfig = (): RunPodConfig => ({
  apiKey: process.env.RUNPOD_API_KEY!,
  embeddingsEndpoint: process.env.RUNPOD_EMBEDDINGS_ENDPOINT!,
  rerankerEndpoint: process.env.RUNPOD_RERANKER_ENDPOINT!,
  timeout: 60000,
});

export async function generateEmbeddingsRunPod(texts: string[]): Promise<number[][]> {
  const config = getConfig();
  const startTime = Date.now();

  const response = await fetch(config.embeddingsEndpoint, {
    method: 'POST',
    headers: {
      'Authorization': `Bearer ${config.apiKey}`,
      'Content-Type': 'application/json',
    },
    body: JSON.stringify({ input: { texts } }),
    signal: AbortSignal.timeout(config.timeout || 60000),
  });

  if (!response.ok) {
    throw new Error(`RunPod embeddings failed: ${response.status}`);
  }

  const result = await response.json();

  if (result.error) {
    throw new Error(`RunPod error: ${result.error}`);
  }

  logger.info({
    textsCount: texts.length,
    latencyMs: Date.now() - startTime,
  }, '[RunPod Embeddings] Request completed');

  return result.output.embeddings;
}

export async function rerankDocumentsRunPod(
  query: string,
  documents: string[],
  topN?: number
): Promise<Array<{ index: number; relevance_score: number }>> {
  const config = getConfig();
  const startTime = Date.now();

  const response = await fetch(config.rerankerEndpoint, {
    method: 'POST',
    headers: {
      'Authorization': `Bearer ${config.apiKey}`,
      'Content-Type': 'application/json',
    },
    body: JSON.stringify({ input: { query, documents, top_n: topN } }),
    signal: AbortSignal.timeout(config.timeout || 60000),
  });

  if (!response.ok) {
    throw new Error(`RunPod reranker failed: ${response.status}`);
  }

  const result = await response.json();

  if (result.error) {
    throw new Error(`RunPod error: ${result.error}`);
  }

  logger.info({
    documentsCount: documents.length,
    latencyMs: Date.now() - startTime,
  }, '[RunPod Reranker] Request completed');

  return result.output.results;
}
