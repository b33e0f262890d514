// Stands for a file that the plan's code imports and does not contain.
export async function rerankDocuments(): Promise<{ index: number; relevance_score: number }[]> {
  return [{ index: 0, relevance_score: 0 }];
}
