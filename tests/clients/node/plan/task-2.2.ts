// The user's own code: task 2.2 of the migration plan, unchanged.
import { RerankResult, rerankDocuments as rerankBGE, healthCheck as bgeHealthCheck } from './bge-reranker-client';
import { rerankDocuments as rerankJina } from '../jina/reranker-client';
import { logger } from '../logger';

type RerankerProvider = 'bge' | 'jina' | 'auto';

interface RerankerConfig {
  provider: RerankerProvider;
  bgeEndpoint?: string;
  fallbackToJina: boolean;
}

function getConfig(): RerankerConfig {
  return {
    provider: (process.env.RERANKER_PROVIDER as RerankerProvider) || 'bge',
    bgeEndpoint: process.env.BGE_RERANKER_ENDPOINT,
    fallbackToJina: process.env.RERANKER_FALLBACK_TO_JINA === 'true',
  };
}

let bgeHealthy: boolean | null = null;

export async function rerankDocuments(
  query: string,
  documents: string[],
  topN?: number
): Promise<RerankResult[]> {
  const config = getConfig();

  let useBGE = config.provider === 'bge';

  if (config.provider === 'auto') {
    if (bgeHealthy === null) {
      bgeHealthy = await bgeHealthCheck();
      setTimeout(() => { bgeHealthy = null; }, 60000);
    }
    useBGE = bgeHealthy;
  }

  if (useBGE) {
    try {
      return await rerankBGE(query, documents, topN);
    } catch (error) {
      if (config.fallbackToJina) {
        logger.warn({ err: error }, '[Reranker] BGE failed, falling back to Jina');
        return await rerankJina(query, documents, topN);
      }
      throw error;
    }
  }

  return await rerankJina(query, documents, topN);
}

export type { RerankResult };
