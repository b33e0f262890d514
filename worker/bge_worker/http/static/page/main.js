// The tabs, and the start of each view.

import { forgetKey, hasKey } from "./api.js";
import { startCompare } from "./compare.js";
import { startRerank } from "./rerank.js";
import { startServer } from "./server.js";
import { startTokens } from "./tokens.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab) {
  for (const each of tabs) {
    const isShown = each === tab;
    each.setAttribute("aria-selected", isShown);
    each.tabIndex = isShown ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = !isShown;
  }
}

function showAddressed() {
  const view = location.hash.slice(1) || "compare";
  show(tabs.find(tab => tab.getAttribute("aria-controls") === view) ?? tabs[0]);
}

function select(tab) {
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  show(tab);
  tab.focus();
}

function moveAmongTabs(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step === undefined) return;
  select(tabs.at((tabs.indexOf(event.target) + step) % tabs.length));
}

/** Ctrl+Enter in a field sends its form. */
function submitByKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form?.requestSubmit();
}

function showForgetButton() {
  document.getElementById("key-forget").hidden = !hasKey();
}

function forget() {
  forgetKey();
  showForgetButton();
}

for (const tab of tabs) tab.addEventListener("click", () => select(tab));
document.querySelector("[role=tablist]").addEventListener("keydown", moveAmongTabs);
document.addEventListener("keydown", submitByKey);
document.getElementById("key").addEventListener("close", () => setTimeout(showForgetButton));
document.getElementById("key-forget").addEventListener("click", forget);
window.addEventListener("hashchange", showAddressed);
showAddressed();
showForgetButton();
startCompare(document.getElementById("compare"));
startRerank(document.getElementById("rerank"));
startTokens(document.getElementById("tokens"));
startServer(document.getElementById("server"));
