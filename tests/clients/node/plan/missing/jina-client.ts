// Stands for a file that the plan's code imports and does not contain.
export async function generateEmbeddings(texts: string[]): Promise<number[][]> {
  return texts.map(() => [0]);
}
