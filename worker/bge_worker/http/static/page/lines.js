// The lines from query tokens to their best document tokens.

import { svgNode } from "./dom.js";

const MAX_LINES = 40; // more cannot be told apart: then only the selected token has its line

export class AlignmentLines {
  /** `container` is positioned; it holds the nodes of both texts. */
  constructor(container, queryNodes, documentNodes, alignment) {
    this._container = container;
    this._query = queryNodes;
    this._document = documentNodes;
    this._alignment = alignment;
    this._selected = -1;
    this._svg = svgNode("svg", { "aria-hidden": "true" });
    container.append(this._svg);
    for (const name of ["focusin", "pointerover"]) {
      container.addEventListener(name, event => this._select(event.target.closest("button")));
    }
    new ResizeObserver(() => this._draw()).observe(container);
  }

  _select(button) {
    const index = this._query.indexOf(button);
    if (index < 0 || index === this._selected) return;
    const best = this._alignment[index].index;
    this._query.forEach((node, i) => node.classList.toggle("selected", i === index));
    this._document.forEach((node, j) => node.classList.toggle("selected", j === best));
    this._selected = index;
    this._draw();
  }

  _draw() {
    const all = this._query.length <= MAX_LINES ? [...this._query.keys()] : [];
    const drawn = this._selected < 0 ? all : [...all, this._selected]; // the selected is on top
    const origin = this._container.getBoundingClientRect();
    this._svg.replaceChildren(...drawn.map(index => this._line(index, origin)));
  }

  _line(index, origin) {
    const from = this._query[index].getBoundingClientRect();
    const to = this._document[this._alignment[index].index].getBoundingClientRect();
    const line = svgNode("line", {
      x1: from.x + from.width / 2 - origin.x, y1: from.bottom - origin.y,
      x2: to.x + to.width / 2 - origin.x, y2: to.top - origin.y,
    });
    line.classList.toggle("selected", index === this._selected);
    return line;
  }
}
