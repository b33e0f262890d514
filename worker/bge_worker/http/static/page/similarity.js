// Numbers from vectors. No document here: a worker thread runs these.

/** Return the floats of base64 with little-endian float32. */
export function decodeFloats(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Float32Array(bytes.buffer);
}

/** Return the product of row `i` of `a` and row `j` of `b`, both of `width` columns. */
function dot(a, i, b, j, width) {
  let sum = 0;
  const startA = i * width, startB = j * width;
  for (let k = 0; k < width; k++) sum += a[startA + k] * b[startB + k];
  return sum;
}

/** Return the cosines of the first `rows` vectors with all: a list of lists. */
export function cosines(vectors, rows) {
  const floats = vectors.map(vector => typeof vector === "string" ? decodeFloats(vector) : vector);
  return floats.slice(0, rows).map(row =>
    floats.map(column => dot(row, 0, column, 0, row.length)));
}

/**
 * For each token of the query, return its best token of the document and their cosine.
 * `query` and `document` are ColBERT vectors in base64, with their shape.
 */
export function align(query, document) {
  const [rows, width] = query.shape, columns = document.shape[0];
  const a = decodeFloats(query.data), b = decodeFloats(document.data);
  const alignment = [];
  for (let i = 0; i < rows; i++) {
    let best = { index: 0, similarity: -Infinity };
    for (let j = 0; j < columns; j++) {
      const similarity = dot(a, i, b, j, width);
      if (similarity > best.similarity) best = { index: j, similarity };
    }
    alignment.push(best);
  }
  return alignment;
}

/** Return what each document token adds to the sum: the cosines that are best with it. */
export function contributions(alignment, columns) {
  const sums = new Array(columns).fill(0);
  for (const { index, similarity } of alignment) sums[index] += similarity;
  return sums;
}

/** Return the tokens that two sparse vectors share, the highest product first. */
export function sharedTokens(a, b) {
  const weights = new Map(b.indices.map((id, at) => [id, b.values[at]]));
  const shared = a.indices.flatMap((id, at) => {
    const [first, second] = [a.values[at], weights.get(id)];
    return second === undefined ? [] : [{ id, first, second, product: first * second }];
  });
  return shared.sort((x, y) => y.product - x.product);
}

export const sum = numbers => numbers.reduce((total, number) => total + number, 0);
