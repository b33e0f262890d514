// The user's own code: task 1.3 of the migration plan, unchanged.
import { QdrantClient } from '@qdrant/js-client-rest';
import { generateEmbeddings } from '../src/shared/embeddings/bge-client';

const BATCH_SIZE = 32;
const OLD_COLLECTION = 'courses';
const NEW_COLLECTION = 'courses_bge';

async function migrateEmbeddings() {
  const qdrant = new QdrantClient({ url: process.env.QDRANT_URL });

  // 1. Create new collection
  await qdrant.createCollection(NEW_COLLECTION, {
    vectors: {
      size: 1024,  // BGE-M3 dimensions
      distance: 'Cosine',
    },
  });

  // 2. Get all points from old collection
  let offset: string | null = null;
  let totalMigrated = 0;

  while (true) {
    const { points, next_page_offset } = await qdrant.scroll(OLD_COLLECTION, {
      limit: BATCH_SIZE,
      offset,
      with_payload: true,
      with_vector: false,  // Don't need old vectors
    });

    if (points.length === 0) break;

    // 3. Generate new embeddings
    const texts = points.map(p => p.payload?.content as string);
    const embeddings = await generateEmbeddings(texts);

    // 4. Upsert to new collection
    await qdrant.upsert(NEW_COLLECTION, {
      points: points.map((p, i) => ({
        id: p.id,
        vector: embeddings[i],
        payload: p.payload,
      })),
    });

    totalMigrated += points.length;
    console.log(`Migrated ${totalMigrated} points...`);

    offset = next_page_offset as string | null;
    if (!offset) break;
  }

  console.log(`Migration complete! Total: ${totalMigrated} points`);
}

migrateEmbeddings().catch(console.error);
