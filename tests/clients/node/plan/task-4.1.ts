// The user's own code: task 4.1 of the migration plan, unchanged.
// BGE-M3 hybrid retrieval
const response = await fetch(`${endpoint}/embed_sparse`, {
  method: 'POST',
  body: JSON.stringify({ input: texts }),
});
