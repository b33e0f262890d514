// The requests of a view as curl, Python and JavaScript. The key is named, never shown.

import { address, hasKey } from "./api.js";
import { element } from "./dom.js";

const MAX_SHOWN = 20_000; // characters: more would stop the page while it draws
const LANGUAGES = { curl: toCurl, Python: toPython, JavaScript: toJavaScript };

/** Show `requests` in the view's panel. The chosen language stays. */
export function showRequests(view, requests) {
  const panel = view.querySelector(".requests");
  const language = panel.querySelector("[aria-pressed=true]")?.textContent ?? "curl";
  const code = element("pre", { tabindex: "0", "aria-label": "Request" });
  const names = Object.keys(LANGUAGES);
  const buttons = names.map(name => element("button", { class: "quiet" }, name));
  let snippet = "";
  const choose = name => {
    for (const button of buttons) button.setAttribute("aria-pressed", button.textContent === name);
    snippet = LANGUAGES[name](requests);
    code.textContent = shortened(snippet);
  };
  for (const button of buttons) button.addEventListener("click", () => choose(button.textContent));
  const copy = element("button", { class: "quiet copy" }, "Copy");
  copy.addEventListener("click", () => copyText(copy, snippet));
  choose(language);
  panel.replaceChildren(
    element("h2", {}, requests.length > 1 ? "Requests" : "Request"),
    element("p", { class: "languages" }, ...buttons, copy), code);
}

function shortened(snippet) {
  if (snippet.length <= MAX_SHOWN) return snippet;
  return `${snippet.slice(0, MAX_SHOWN)}…\n(Copy takes all ${snippet.length} characters)`;
}

async function copyText(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied"; // without https the browser has no clipboard
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function toCurl(requests) {
  return requests.map(({ path, body }) => {
    const key = hasKey() ? ' -H "Authorization: Bearer $BGE_API_KEY"' : "";
    const data = body ? ` -d ${shellQuoted(JSON.stringify(body))}` : "";
    return `curl -s ${address(path)}${key}${data}`;
  }).join("\n\n");
}

const shellQuoted = text => `'${text.replaceAll("'", "'\\''")}'`;

function toPython(requests) {
  const header = `{"Authorization": f"Bearer {os.environ['BGE_API_KEY']}"}`;
  const key = hasKey() ? `, headers=${header}` : "";
  const calls = requests.map(({ method, path, body }) => {
    const json = body ? `, json=${pythonLiteral(body)}` : "";
    const reply = path === "/metrics" ? "text" : "json()";
    const call = `requests.${method.toLowerCase()}("${address(path)}"${json}${key})`;
    return `reply = ${call}\nprint(reply.${reply})`;
  });
  return `${hasKey() ? "import os\n\n" : ""}import requests\n\n${calls.join("\n\n")}`;
}

function pythonLiteral(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value); // JSON's strings are Python's too
  const items = Object.entries(value).map(([name, item]) => `"${name}": ${pythonLiteral(item)}`);
  return `{${items.join(", ")}}`;
}

function toJavaScript(requests) {
  return requests.map(({ method, path, body }) => {
    const header = "  headers: { authorization: `Bearer ${process.env.BGE_API_KEY}` },";
    const key = hasKey() ? [header] : [];
    const data = body ? [`  body: JSON.stringify(${JSON.stringify(body)}),`] : [];
    const options = [`  method: "${method}",`, ...key, ...data].join("\n");
    const reply = path === "/metrics" ? "text" : "json";
    const call = `await fetch("${address(path)}", {\n${options}\n})`;
    return `console.log(await (${call}).${reply}());`;
  }).join("\n\n");
}
