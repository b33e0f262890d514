// The user's own code: task 1.2 of the migration plan, unchanged.
import { generateEmbeddings as generateBGE, healthCheck as bgHealthCheck } from './bge-client';
import { generateEmbeddings as generateJina } from './jina-client';
import { logger } from '../logger';

type EmbeddingsProvider = 'bge' | 'jina' | 'auto';

interface EmbeddingsConfig {
  provider: EmbeddingsProvider;
  bgeEndpoint?: string;
  fallbackToJina: boolean;
}

function getConfig(): EmbeddingsConfig {
  return {
    provider: (process.env.EMBEDDINGS_PROVIDER as EmbeddingsProvider) || 'bge',
    bgeEndpoint: process.env.BGE_EMBEDDINGS_ENDPOINT,
    fallbackToJina: process.env.EMBEDDINGS_FALLBACK_TO_JINA === 'true',
  };
}

let bgeHealthy: boolean | null = null;

export async function generateEmbeddings(texts: string[]): Promise<number[][]> {
  const config = getConfig();

  let useBGE = config.provider === 'bge';

  if (config.provider === 'auto') {
    if (bgeHealthy === null) {
      bgeHealthy = await bgHealthCheck();
      setTimeout(() => { bgeHealthy = null; }, 60000);
    }
    useBGE = bgeHealthy;
  }

  if (useBGE) {
    try {
      return await generateBGE(texts);
    } catch (error) {
      if (config.fallbackToJina) {
        logger.warn({ err: error }, '[Embeddings] BGE failed, falling back to Jina');
        return await generateJina(texts);
      }
      throw error;
    }
  }

  return await generateJina(texts);
}
