// The user's own code: task 1.1 of the migration plan, unchanged.
import { logger } from '../logger';

export interface BGEEmbeddingConfig {
  endpoint: string;  // e.g., "http://localhost:8080"
  timeout?: number;  // default: 30000ms
}

const DEFAULT_CONFIG: BGEEmbeddingConfig = {
  endpoint: process.env.BGE_EMBEDDINGS_ENDPOINT || 'http://localhost:8080',
  timeout: 30000,
};

export async function generateEmbeddings(
  texts: string[],
  config: BGEEmbeddingConfig = DEFAULT_CONFIG
): Promise<number[][]> {
  if (texts.length === 0) return [];

  const startTime = Date.now();

  try {
    const response = await fetch(`${config.endpoint}/embeddings`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ input: texts }),
      signal: AbortSignal.timeout(config.timeout || 30000),
    });

    if (!response.ok) {
      throw new Error(`BGE embeddings returned ${response.status}: ${await response.text()}`);
    }

    const result = await response.json();
    const embeddings = result.data.map((item: { embedding: number[] }) => item.embedding);

    const latencyMs = Date.now() - startTime;
    logger.info({
      textsCount: texts.length,
      dimensions: embeddings[0]?.length,
      latencyMs,
    }, '[BGE Embeddings] Request completed');

    return embeddings;

  } catch (error) {
    logger.error({
      err: error instanceof Error ? error.message : String(error),
      textsCount: texts.length,
    }, '[BGE Embeddings] Request failed');
    throw error;
  }
}

export async function healthCheck(config: BGEEmbeddingConfig = DEFAULT_CONFIG): Promise<boolean> {
  try {
    const response = await fetch(`${config.endpoint}/health`, {
      signal: AbortSignal.timeout(5000),
    });
    return response.ok;
  } catch {
    return false;
  }
}
