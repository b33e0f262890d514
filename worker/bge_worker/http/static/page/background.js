// Long products, on a thread of their own.

/** Return the result of `align` or `cosines` of similarity.js. `signal` ends the thread. */
export function compute(name, inputs, signal) {
  const worker = new Worker(new URL("similarity-worker.js", import.meta.url), { type: "module" });
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => { worker.terminate(); reject(signal.reason); });
    worker.addEventListener("message", ({ data }) => { worker.terminate(); resolve(data); });
    worker.addEventListener("error", () => reject(new Error("The page could not compute this.")));
    worker.postMessage({ name, inputs });
  });
}
