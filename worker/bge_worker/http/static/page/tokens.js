// How the tokenizer cuts a text, and the sparse weight of each token.

import { embed, sendJson, tokenize } from "./api.js";
import { describe } from "./compare.js";
import { Messages, barCell, element, onSubmit, scrollable, table, tokenNode } from "./dom.js";
import { showRequests } from "./snippets.js";

const MAX_SHOWN = 2000, MAX_ROWS = 500; // more would stop the page while it draws
const EXAMPLE = "Градиентный спуск ищет минимум функции потерь. Gradient descent finds a minimum.";

export function startTokens(view) {
  const field = document.getElementById("tokens-text");
  field.value = EXAMPLE;
  const messages = new Messages(view);
  onSubmit(view, messages, signal => showTokens(view, messages, field.value, signal));
}

async function showTokens(view, messages, text, signal) {
  const panel = document.getElementById("token-list");
  const sparseOnly = { return_dense: false, return_sparse: true };
  const requests = [tokenize([text]), embed({ texts: [text], ...sparseOnly })];
  messages.status("Computing…");
  panel.replaceChildren();
  showRequests(view, requests);
  const [[tokens], reply] = await Promise.all(requests.map(request => sendJson(request, signal)));
  const [sparse] = reply.sparse_embeddings;
  const weights = new Map(sparse.indices.map((id, at) => [id, sparse.values[at]]));
  const most = Math.max(...sparse.values, 1e-9);
  messages.status(describe(reply));
  panel.replaceChildren(
    element("h2", {}, `${tokens.length.toLocaleString("en")} tokens, `
      + `${weights.size.toLocaleString("en")} with a sparse weight`),
    shownNote(tokens.length),
    element("p", { class: "tokens" }, ...tokens.slice(0, MAX_SHOWN).map(token => {
      const weight = weights.get(token.id) ?? 0;
      return tokenNode("span", token.text, weight / most, `${token.id}: ${weight.toFixed(4)}`);
    })),
    tokenTable(tokens, weights, most));
}

function shownNote(count) {
  return count <= MAX_SHOWN ? "" : element("p", { class: "hint" },
    `The first ${MAX_SHOWN.toLocaleString("en")} are shown.`);
}

function tokenTable(tokens, weights, most) {
  const rows = tokens.slice(0, MAX_ROWS).map(token => {
    const weight = weights.get(token.id);
    return element("tr", {},
      element("th", { scope: "row" }, element("bdi", {}, token.text)),
      element("td", {}, String(token.id)),
      element("td", {}, token.special ? "special" : `${token.start}–${token.stop}`),
      weight === undefined ? element("td", {}) : barCell(weight.toFixed(4), weight / most));
  });
  const content = table("Tokens", ["Token", "Id", "Characters", "Sparse weight"], rows);
  const first = tokens.length > MAX_ROWS ? `The first ${MAX_ROWS} tokens` : "All tokens";
  return element("details", {}, element("summary", {}, `${first} as a table`),
    scrollable("Tokens", content));
}
