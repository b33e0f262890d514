// Rerank documents: the order by dense similarity before, by the reranker's score after.

import { embed, rerank, sendJson } from "./api.js";
import { compute } from "./background.js";
import { describe } from "./compare.js";
import { readDocuments } from "./documents.js";
import { Messages, barCell, element, onSubmit, scrollable, table } from "./dom.js";
import { serverInfo } from "./server.js";
import { showRequests } from "./snippets.js";

const MAX_ROWS = 200; // more would stop the page while it draws
const QUERY = "как найти минимум функции";
const DOCUMENTS = [
  "Как найти работу?",
  "Функции и пределы",
  "Градиентный спуск ищет минимум функции потерь.",
  "Gradient descent finds a minimum of the loss function.",
  "A transaction is all or nothing.",
];

/** The documents are the lines of the field, or those of a file. */
class Documents {
  constructor() {
    this._field = document.getElementById("rerank-documents");
    this._field.value = DOCUMENTS.join("\n");
    this._loaded = document.getElementById("rerank-loaded");
    this._ofFile = null;
    document.getElementById("rerank-clear").addEventListener("click", () => this._show(null, ""));
  }

  get texts() {
    return this._ofFile ?? this._field.value.split("\n").filter(line => line.trim());
  }

  async load(file) {
    const documents = readDocuments(file.name, await file.text());
    this._show(documents, `${documents.length.toLocaleString("en")} documents of ${file.name}`);
  }

  _show(documents, sentence) {
    this._ofFile = documents;
    this._field.hidden = documents !== null;
    this._loaded.hidden = documents === null;
    this._loaded.firstElementChild.textContent = sentence;
  }
}

export function startRerank(view) {
  const query = document.getElementById("rerank-query");
  const documents = new Documents();
  const messages = new Messages(view);
  query.value = QUERY;
  onSubmit(view, messages, signal =>
    rankDocuments(view, messages, query.value, documents.texts, signal));
  const load = file => {
    messages.status("");
    documents.load(file).catch(error => messages.error(error));
  };
  const input = document.getElementById("rerank-file");
  input.addEventListener("change", () => {
    if (input.files.length) load(input.files[0]);
    input.value = "";
  });
  view.addEventListener("dragover", event => event.preventDefault());
  view.addEventListener("drop", event => {
    if (!event.dataTransfer.files.length) return; // dragged text goes to its field
    event.preventDefault();
    load(event.dataTransfer.files[0]);
  });
}

async function rankDocuments(view, messages, query, documents, signal) {
  const panel = document.getElementById("ranking");
  const request = rerank({ query, documents });
  const embedRequest = embed({ texts: [query, ...documents], encoding_format: "base64" });
  messages.status("Computing…");
  panel.replaceChildren();
  const { models, limits } = await serverInfo();
  const hasDense = models.embed !== undefined && documents.length < limits.max_texts;
  showRequests(view, hasDense ? [request, embedRequest] : [request]);
  const reply = await sendJson(request, signal); // first: its errors name `query` and `documents`
  const similarities = hasDense ? await similaritiesOf(embedRequest, signal) : undefined;
  messages.status(describe(reply));
  panel.replaceChildren(...rankingTable(reply, documents, similarities));
}

/** Return the cosine of the first text with each further one. */
async function similaritiesOf(embedRequest, signal) {
  const { embeddings } = await sendJson(embedRequest, signal);
  return (await compute("cosines", [embeddings, 1], signal))[0].slice(1);
}

/** `similarities` of the documents may be undefined. */
function rankingTable(reply, documents, similarities) {
  const ranks = ranksBefore(documents.length, similarities);
  const truncated = new Set(reply.truncated);
  const rows = reply.results.slice(0, MAX_ROWS).map(({ index, relevance_score }, rank) =>
    element("tr", {},
      element("td", { class: "number" }, String(rank + 1)),
      element("td", { class: "number" }, change(ranks[index], rank + 1)),
      element("th", { scope: "row", class: "document" },
        element("bdi", {}, documents[index].slice(0, 300)),
        truncated.has(index) ? element("small", {}, " truncated") : ""),
      ...(similarities ? [barCell(similarities[index].toFixed(4), similarities[index])] : []),
      barCell(relevance_score.toFixed(4), relevance_score)));
  const dense = similarities ? ["Dense, before"] : [];
  const headings = ["Rank", "Rank before", "Document", ...dense, "Relevance, after"];
  const shown = rows.length < documents.length ? `, ${MAX_ROWS} of ${documents.length}` : "";
  const before = similarities ? "the order by dense similarity" : "the order given";
  return [
    element("h2", {}, `Order by relevance${shown}`),
    element("p", { class: "hint" }, `Before: ${before}.`),
    scrollable("Ranking", table("Ranking", headings, rows, { class: "ranking" })),
  ];
}

/** Return the rank of each document before, from 1. */
function ranksBefore(count, similarities) {
  const order = [...Array(count).keys()];
  if (similarities) order.sort((a, b) => similarities[b] - similarities[a] || a - b);
  const ranks = new Array(count);
  order.forEach((index, rank) => { ranks[index] = rank + 1; });
  return ranks;
}

function change(before, after) {
  if (before === after) return String(before);
  return `${before} ${before > after ? "▲" : "▼"}`;
}
