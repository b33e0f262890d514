// Rates and quantiles from Prometheus metrics. Counters only grow, so two samples give a rate.

const BUCKET = "bge_request_seconds_bucket";
// Routes that compute nothing: this page polls some of them.
const OTHER_ROUTES = new Set(["/", "/page/{file}", "/docs", "/docs/{file}", "/openapi.json",
  "/metrics", "/ping", "/health", "/native/info", "unknown"]);
const WINDOW_MS = 60_000; // of the quantiles and the load

/** Return what the charts need of a reply of /metrics. */
export function parseMetrics(text, time) {
  const sample =
    { time, start: 0, requests: 0, errors: 0, tokens: 0, queue: 0, busy: 0, buckets: new Map() };
  for (const line of text.split("\n")) {
    const [, name, labels, value] = line.match(/^(\w+)(?:\{(.*)\})? (\S+)/) ?? [];
    if (name === "bge_tokens_total") sample.tokens = Number(value);
    else if (name === "process_start_time_seconds") sample.start = Number(value);
    else if (name === "bge_queue_depth") sample.queue = Number(value);
    else if (name === "bge_micro_batch_seconds_total") sample.busy = Number(value);
    else if (name === "bge_requests_total") addRequests(sample, labels, Number(value));
    else if (name === BUCKET) addBucket(sample.buckets, labels, Number(value));
  }
  return sample;
}

const labelOf = (labels, name) => labels.match(new RegExp(`${name}="([^"]*)"`))?.[1];
const isInference = labels => !OTHER_ROUTES.has(labelOf(labels, "route"));

function addRequests(sample, labels, count) {
  if (!isInference(labels)) return;
  sample.requests += count;
  if (Number(labelOf(labels, "status")) >= 400) sample.errors += count;
}

function addBucket(buckets, labels, count) {
  if (!isInference(labels)) return;
  const limit = Number(labelOf(labels, "le").replace("+Inf", "Infinity"));
  buckets.set(limit, (buckets.get(limit) ?? 0) + count);
}

/**
 * Return the points of the charts: rates between neighbouring samples; quantiles and the load of
 * a minute, since a micro-batch counts when it ends.
 */
export function pointsOf(samples) {
  return samples.slice(1).map((sample, index) => {
    const previous = samples[index];
    const seconds = (sample.time - previous.time) / 1000;
    const recent = samples.findIndex(({ time }) => time >= sample.time - WINDOW_MS);
    const first = samples[Math.min(recent, index)];
    return {
      time: sample.time,
      requests: (sample.requests - previous.requests) / seconds,
      errors: (sample.errors - previous.errors) / seconds,
      tokens: (sample.tokens - previous.tokens) / seconds,
      load: 100_000 * (sample.busy - first.busy) / (sample.time - first.time),
      queue: sample.queue,
      p50: quantile(0.5, first.buckets, sample.buckets),
      p99: quantile(0.99, first.buckets, sample.buckets),
    };
  });
}

/** Return a quantile, in milliseconds, of what two samples count between them; null if nothing. */
export function quantile(share, before, after) {
  const limits = [...after.keys()].sort((a, b) => a - b);
  const counts = limits.map(limit => after.get(limit) - (before.get(limit) ?? 0)); // cumulative
  const total = counts.at(-1) ?? 0;
  if (total <= 0) return null;
  const at = counts.findIndex(count => count >= share * total);
  const [start, below] = at > 0 ? [limits[at - 1], counts[at - 1]] : [0, 0];
  if (limits[at] === Infinity) return 1000 * start;
  return 1000 * (start + (limits[at] - start) * (share * total - below) / (counts[at] - below));
}
