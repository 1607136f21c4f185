// tf.keras.layers.Attention in plain JavaScript numbers, to compare the page with.

/**
 * Attention scores [Tq][Tv] of embeddings [Tq, dim] on [Tv, dim]. Hidden keys get score - 1e9,
 * rounded to float32: that rounding decides a row in which everything is hidden.
 */
export function attentionScores(query, value, dim, { scale, mask, causal }) {
  const row = (side, i) => side.subarray(i * dim, (i + 1) * dim);
  const dot = (a, b) => a.reduce((sum, x, d) => sum + x * b[d], 0);
  return Array.from({ length: query.length / dim }, (_, i) => {
    const scores = Array.from({ length: value.length / dim }, (_, j) => {
      const score = scale * dot(Float64Array.from(row(query, i)), row(value, j));
      return mask[j] && !(causal && j > i) ? score : Math.fround(score - 1e9);
    });
    const largest = Math.max(...scores);
    const shares = scores.map((score) => Math.exp(score - largest));
    const sum = shares.reduce((a, b) => a + b);
    return shares.map((share) => share / sum);
  });
}
