// Compare texts: a map of dense similarities. A cell opens the pair.

import { embed, sendJson } from "./api.js";
import { compute } from "./background.js";
import { Messages, element, moveByArrows, onSubmit, scrollable } from "./dom.js";
import { openPair } from "./pair.js";
import { sum } from "./similarity.js";
import { showRequests } from "./snippets.js";

const MIN_TEXTS = 2, MAX_TEXTS = 20;
const EXAMPLES = [
  "Как найти минимум функции?",
  "Градиентный спуск ищет минимум функции потерь.",
  "Gradient descent finds a minimum of the loss function.",
  "A transaction is all or nothing.",
];

export function startCompare(view) {
  const list = document.getElementById("compare-texts");
  for (const text of EXAMPLES) addText(list, text);
  document.getElementById("compare-add").addEventListener("click", () => {
    addText(list, "").focus();
  });
  const messages = new Messages(view);
  onSubmit(view, messages, signal => compare(view, messages, textsOf(list), signal));
}

function addText(list, text) {
  const field = element("textarea", { rows: "2", dir: "auto" });
  const remove = element("button", { type: "button", class: "quiet" }, "Remove");
  const item = element("li", {}, field, remove);
  field.value = text;
  remove.addEventListener("click", () => { item.remove(); numberTexts(list); });
  list.append(item);
  numberTexts(list);
  return field;
}

/** Name the fields by their position; keep the number of texts within its limits. */
function numberTexts(list) {
  [...list.children].forEach((item, index) => {
    const [field, remove] = item.children;
    field.setAttribute("aria-label", `Text ${index + 1}`);
    remove.setAttribute("aria-label", `Remove text ${index + 1}`);
    remove.disabled = list.children.length <= MIN_TEXTS;
  });
  document.getElementById("compare-add").disabled = list.children.length >= MAX_TEXTS;
}

const textsOf = list => [...list.querySelectorAll("textarea")].map(field => field.value);

async function compare(view, messages, texts, signal) {
  const request = embed({ texts });
  messages.status("Computing…");
  showRequests(view, [request]);
  for (const id of ["map", "pair"]) document.getElementById(id).replaceChildren();
  const reply = await sendJson(request, signal);
  const matrix = await compute("cosines", [reply.embeddings, texts.length], signal);
  messages.status(describe(reply));
  document.getElementById("map").replaceChildren(
    element("h2", {}, "Dense similarity"), heatMap(view, messages, texts, matrix, signal));
}

/** Return the map: rows are queries, columns documents. Shades span the values that it shows. */
function heatMap(view, messages, texts, matrix, signal) {
  const others = matrix.flatMap((row, i) => row.filter((_, j) => i !== j));
  const lowest = Math.min(...others), range = Math.max(...others) - lowest || 1;
  const hasMany = texts.length > 10;
  const buttons = [];
  const rows = matrix.map((row, i) => {
    const cells = row.map((value, j) => {
      const share = Math.min(1, (value - lowest) / range);
      const button = cellButton(value.toFixed(hasMany ? 2 : 3), share, i, j);
      buttons.push(button);
      return element("td", {}, button);
    });
    return element("tr", {}, rowHeading(texts[i], i), ...cells);
  });
  const heads = texts.map((_, j) => element("th", { scope: "col" }, String(j + 1)));
  const grid = element("table", { class: hasMany ? "map many" : "map" },
    element("thead", {}, element("tr", {}, element("td"), ...heads)),
    element("tbody", {}, ...rows));
  moveByArrows(grid, buttons, texts.length);
  let opened = new AbortController();
  grid.addEventListener("click", event => {
    if (!buttons.includes(event.target)) return;
    for (const button of buttons) button.setAttribute("aria-pressed", button === event.target);
    opened.abort();
    opened = new AbortController();
    const [i, j] = [Number(event.target.dataset.row), Number(event.target.dataset.column)];
    const pair = { query: texts[i], document: texts[j], row: i, column: j, dense: matrix[i][j] };
    openPair(view, pair, AbortSignal.any([signal, opened.signal]))
      .catch(error => messages.error(error));
  });
  return scrollable("Dense similarity", grid);
}

function cellButton(value, share, row, column) {
  return element("button", {
    "--share": share.toFixed(3), "data-row": row, "data-column": column, "aria-pressed": "false",
    "aria-label": `Text ${row + 1} and text ${column + 1}: ${value}`,
  }, value);
}

function rowHeading(text, index) {
  return element("th", { scope: "row" },
    element("span", { class: "number" }, String(index + 1)), " ",
    element("bdi", { class: "excerpt" }, text.slice(0, 80)));
}

export function describe(reply) {
  const milliseconds = sum(Object.values(reply.timings_ms));
  const truncated = reply.truncated.length ? `, ${reply.truncated.length} truncated` : "";
  return `${reply.model}: ${reply.usage.total_tokens.toLocaleString("en")} tokens, `
    + `${milliseconds.toFixed(1)} ms on the server${truncated}.`;
}
