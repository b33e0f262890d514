// The user's own code: task 2.1 of the migration plan, unchanged.
import { logger } from '../logger';

export interface RerankResult {
  index: number;
  relevance_score: number;
}

export interface BGERerankerConfig {
  endpoint: string;
  timeout?: number;
}

const DEFAULT_CONFIG: BGERerankerConfig = {
  endpoint: process.env.BGE_RERANKER_ENDPOINT || 'http://localhost:8081',
  timeout: 30000,
};

export async function rerankDocuments(
  query: string,
  documents: string[],
  topN?: number,
  config: BGERerankerConfig = DEFAULT_CONFIG
): Promise<RerankResult[]> {
  if (documents.length === 0) return [];

  const startTime = Date.now();

  try {
    const response = await fetch(`${config.endpoint}/rerank`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({
        query,
        documents,
        return_documents: false,
      }),
      signal: AbortSignal.timeout(config.timeout || 30000),
    });

    if (!response.ok) {
      throw new Error(`BGE reranker returned ${response.status}: ${await response.text()}`);
    }

    const result = await response.json();

    // TEI returns array of {index, score}
    let results: RerankResult[] = result.map((item: { index: number; score: number }) => ({
      index: item.index,
      relevance_score: item.score,
    }));

    // Sort by score descending
    results.sort((a, b) => b.relevance_score - a.relevance_score);

    // Apply topN
    if (topN) {
      results = results.slice(0, topN);
    }

    const latencyMs = Date.now() - startTime;
    logger.info({
      documentsCount: documents.length,
      latencyMs,
      topScore: results[0]?.relevance_score,
    }, '[BGE Reranker] Request completed');

    return results;

  } catch (error) {
    logger.error({
      err: error instanceof Error ? error.message : String(error),
      documentsCount: documents.length,
    }, '[BGE Reranker] Request failed');
    throw error;
  }
}

export async function healthCheck(config: BGERerankerConfig = DEFAULT_CONFIG): Promise<boolean> {
  try {
    const response = await fetch(`${config.endpoint}/health`, {
      signal: AbortSignal.timeout(5000),
    });
    return response.ok;
  } catch {
    return false;
  }
}
