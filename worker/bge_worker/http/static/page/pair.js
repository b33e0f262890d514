// Why two texts match: shared sparse tokens, and ColBERT's alignment.

import { embed, sendJson, tokenize } from "./api.js";
import { compute } from "./background.js";
import { barCell, element, moveByArrows, scrollable, table, tokenNode } from "./dom.js";
import { AlignmentLines } from "./lines.js";
import { contributions, sharedTokens, sum } from "./similarity.js";
import { showRequests } from "./snippets.js";

const MAX_LENGTH = 1024; // tokens of a text: more take the browser many seconds

/** Compute and show a pair: `query` and `document`, `row` and `column` in the map, `dense`. */
export async function openPair(view, pair, signal) {
  const panel = document.getElementById("pair");
  panel.replaceChildren(element("p", { role: "status" }, "Computing…"));
  try {
    panel.replaceChildren(...await explain(view, pair, signal));
  } catch (error) {
    if (!signal.aborted) panel.replaceChildren();
    throw error;
  }
}

async function explain(view, pair, signal) {
  const texts = [pair.query, pair.document];
  const request = embed({
    texts, return_dense: false, return_sparse: true, return_colbert: true, return_tokens: true,
    encoding_format: "base64", max_length: MAX_LENGTH,
  });
  const [reply, tokens] = await Promise.all(
    [request, tokenize(texts)].map(each => sendJson(each, signal)));
  const alignment = await compute("align", reply.colbert_embeddings, signal);
  const strings = new Map(tokens.flat().map(token => [token.id, token.text]));
  const shared = sharedTokens(...reply.sparse_embeddings);
  // The first token, <s>, has no ColBERT vector.
  const [queryTokens, documentTokens] = reply.tokens.map(list => list.slice(1));
  showRequests(view, [embed({ texts }), request, tokenize(texts)]);
  return [
    element("h2", {}, `Text ${pair.row + 1} as query, text ${pair.column + 1} as document`),
    scores(pair.dense, shared, alignment),
    truncatedNote(reply.truncated),
    element("h3", {}, "Sparse: tokens that both texts have"),
    sharedTable(shared, strings, pair),
    ...alignmentSection(queryTokens, documentTokens, alignment),
  ];
}

function scores(dense, shared, alignment) {
  const total = sum(alignment.map(best => best.similarity));
  const values = [
    ["Dense", dense, "cosine"],
    ["Sparse", sum(shared.map(token => token.product)), "sum of products"],
    ["ColBERT", total / alignment.length, `${total.toFixed(3)} over ${alignment.length} tokens`],
  ];
  return element("dl", { class: "figures" }, ...values.map(([name, value, unit]) =>
    element("div", { "data-score": name }, element("dt", {}, name),
      element("dd", {}, element("b", {}, value.toFixed(4)), ` ${unit}`))));
}

function truncatedNote(truncated) {
  if (!truncated.length) return "";
  const whose = truncated.length === 2 ? "Both texts are"
    : truncated[0] === 0 ? "The query is" : "The document is";
  return element("p", { class: "hint" },
    `${whose} longer than ${MAX_LENGTH} tokens: sparse and ColBERT read the beginning.`);
}

function sharedTable(shared, strings, pair) {
  if (!shared.length) return element("p", {}, "The texts share no token: their sparse score is 0.");
  const [first, second, product] = ["first", "second", "product"].map(name =>
    Math.max(...shared.map(token => token[name])));
  const rows = shared.map(token => element("tr", {},
    element("th", { scope: "row" }, element("bdi", {}, strings.get(token.id))),
    barCell(token.first.toFixed(4), token.first / Math.max(first, second)),
    barCell(token.second.toFixed(4), token.second / Math.max(first, second)),
    barCell(token.product.toFixed(4), token.product / product)));
  const headings = ["Token", `Text ${pair.row + 1}`, `Text ${pair.column + 1}`, "Product"];
  return scrollable("Shared tokens", table("Shared tokens and their weights", headings, rows));
}

function alignmentSection(queryTokens, documentTokens, alignment) {
  const added = contributions(alignment, documentTokens.length);
  const most = Math.max(...added);
  const best = Math.max(...alignment.map(token => token.similarity));
  const queryNodes = queryTokens.map((string, i) => tokenNode("button", string,
    Math.max(0, alignment[i].similarity / best),
    `${alignment[i].similarity.toFixed(4)} with ${documentTokens[alignment[i].index]}`));
  const documentNodes = documentTokens.map((string, j) => tokenNode("span", string,
    Math.max(0, added[j] / most), `adds ${added[j].toFixed(4)}`));
  const diagram = element("div", { class: "alignment" },
    element("h4", {}, "Query"), element("p", { class: "tokens" }, ...queryNodes),
    element("h4", {}, "Document"), element("p", { class: "tokens" }, ...documentNodes));
  moveByArrows(diagram, queryNodes, 1);
  new AlignmentLines(diagram, queryNodes, documentNodes, alignment);
  return [
    element("h3", {}, "ColBERT: each query token and its best document token"),
    element("p", { class: "hint" },
      "Document tokens are shaded by what they add to the sum. Select a query token."),
    diagram, alignmentTable(queryTokens, documentTokens, alignment),
  ];
}

function alignmentTable(queryTokens, documentTokens, alignment) {
  const rows = queryTokens.map((string, i) => element("tr", {},
    element("th", { scope: "row" }, element("bdi", {}, string)),
    element("td", {}, element("bdi", {}, documentTokens[alignment[i].index])),
    barCell(alignment[i].similarity.toFixed(4), alignment[i].similarity)));
  const content = table("Alignment", ["Query token", "Best document token", "Cosine"], rows);
  return element("details", {}, element("summary", {}, `All ${queryTokens.length} query tokens`),
    scrollable("Alignment", content));
}
