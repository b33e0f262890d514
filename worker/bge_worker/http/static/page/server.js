// The server: its models and limits, and charts of the last minutes.

import { INFO, METRICS, isKeyMissing, send, sendJson } from "./api.js";
import { SPAN_MS, chart } from "./chart.js";
import { Messages, element, scrollable, table } from "./dom.js";
import { parseMetrics, pointsOf } from "./metrics.js";
import { showRequests } from "./snippets.js";

const POLL_MS = 2000;
const CHARTS = [
  ["Requests", "a second", ["requests"]],
  ["Tokens", "a second", ["tokens"]],
  ["Refused or failed requests", "a second", ["errors"]],
  ["Latency over a minute", "ms", ["p50", "p99"]],
  ["Queue", "requests", ["queue"]],
  ["Device load over a minute", "%", ["load"]],
];

let info = null;

/** Return the reply of INFO, requested once from each process. */
export async function serverInfo() {
  info ??= await sendJson(INFO);
  return info;
}

export function startServer(view) {
  const messages = new Messages(view);
  showRequests(view, [INFO, METRICS]);
  poll(view, messages, []);
}

/** Sample the metrics as long as the page is visible; show them if the view is. */
async function poll(view, messages, samples) {
  try {
    if (!document.hidden && !isKeyMissing()) {
      await sample(view, samples);
      messages.status("");
    }
  } catch (error) {
    messages.error(error);
  }
  setTimeout(poll, POLL_MS, view, messages, samples);
}

async function sample(view, samples) {
  const text = await (await send(METRICS)).text();
  const newest = parseMetrics(text, Date.now());
  if (samples.at(-1)?.start !== newest.start) await begin(view, samples);
  samples.push(newest);
  while (samples[0].time < Date.now() - SPAN_MS) samples.shift();
  if (view.hidden) return;
  const points = pointsOf(samples);
  document.getElementById("charts").replaceChildren(
    ...CHARTS.map(([title, unit, names]) => chart(title, unit, names, points)));
}

/** Show a process that has not been sampled yet: its counters do not continue those before. */
async function begin(view, samples) {
  samples.length = 0;
  info = null;
  document.getElementById("info").replaceChildren(...describe(await serverInfo()));
  showRequests(view, [INFO, METRICS]); // again: whether there is a key is known now
}

function describe({ models, limits, versions, ...engine }) {
  const headings =
    ["Role", "Model", "Fingerprint", "Revision", "Dimensions", "Vocabulary", "Tokens"];
  const rows = Object.entries(models).map(([role, model]) => {
    const cells = [model.model, model.fingerprint, model.revision?.slice(0, 12) ?? "–",
      model.width, model.vocab_size.toLocaleString("en"), model.max_length.toLocaleString("en")];
    return element("tr", {}, element("th", { scope: "row" }, role),
      ...cells.map(cell => element("td", {}, String(cell))));
  });
  return [
    element("h2", {}, "Models"), scrollable("Models", table("Models", headings, rows)),
    element("h2", {}, "Engine"), pairs(engine),
    element("h2", {}, "Limits"), pairs(limits),
    element("h2", {}, "Versions"), pairs(versions),
  ];
}

function pairs(values) {
  return element("dl", { class: "pairs" }, ...Object.entries(values).flatMap(([name, value]) => {
    const shown = typeof value === "number" ? value.toLocaleString("en") : String(value);
    return [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, shown)];
  }));
}
