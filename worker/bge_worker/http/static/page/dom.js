// Elements. Texts become text nodes: nothing in these files parses HTML.

/** Return an element. A name that starts with `--` is a CSS variable, others are attributes. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function svgNode(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Return a table with a caption for screen readers. */
export function table(caption, headings, rows, attributes = {}) {
  const head = headings.map(heading => element("th", { scope: "col" }, heading));
  return element("table", attributes,
    element("caption", { class: "visually-hidden" }, caption),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...rows));
}

/** Return a table inside a region that scrolls sideways, which the keyboard can reach. */
export function scrollable(label, node) {
  const region = { class: "scroll", role: "region", "aria-label": label, tabindex: "0" };
  return element("div", region, node);
}

/** Return a cell with a number and a bar of `share`, 0 to 1. */
export function barCell(text, share) {
  return element("td", { class: "bar", "--share": String(Math.min(1, Math.max(0, share))) },
    element("span", {}, text));
}

/** Return a token, shaded by `share`, 0 to 1. Isolated, so that its direction changes no other. */
export function tokenNode(tag, string, share, title) {
  const attributes = { class: "token", title, "--share": share.toFixed(3) };
  return element(tag, attributes, element("bdi", {}, string));
}

/** The arrow keys move the focus among `nodes`, laid out in rows of `columns`; Tab leaves them. */
export function moveByArrows(container, nodes, columns) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  nodes.forEach((node, index) => { node.tabIndex = index === 0 ? 0 : -1; });
  container.addEventListener("keydown", event => {
    const index = nodes.indexOf(event.target);
    const next = nodes[index + steps[event.key]];
    if (index < 0 || !next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

/** Call `run` with a signal when the view's form is sent. The next call aborts the signal. */
export function onSubmit(view, messages, run) {
  let running = new AbortController();
  view.querySelector("form").addEventListener("submit", event => {
    event.preventDefault();
    running.abort();
    running = new AbortController();
    run(running.signal).catch(error => messages.error(error));
  });
}

/** The status line and the error of one view. */
export class Messages {
  constructor(view) {
    this._status = view.querySelector(".status");
    this._error = view.querySelector(".error");
  }

  status(sentence) {
    this._status.textContent = sentence;
    this._error.hidden = true;
  }

  error(error) {
    if (error.name === "AbortError") return; // a newer request took its place
    this._status.textContent = "";
    this._error.textContent = error.message;
    this._error.hidden = false;
  }
}
