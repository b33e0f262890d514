// Small line charts in SVG.

import { element, svgNode } from "./dom.js";

const ORDER = ["first", "second"];
const WIDTH = 300, HEIGHT = 72;
export const SPAN_MS = 300_000;

const format = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/**
 * Return a card with the last value of each series and their lines over the last minutes.
 * `names` are fields of the points; a value of null is a gap.
 */
export function chart(title, unit, names, points) {
  const values = points.flatMap(point => names.map(name => point[name]));
  const most = Math.max(...values, 0); // a null counts as 0
  const figures = names.map((name, index) => {
    const value = points.at(-1)?.[name] ?? null;
    const label = names.length > 1 ? `${name} ` : "";
    const shown = value === null ? "–" : format.format(value);
    return element("span", { class: ORDER[index] }, label + shown);
  });
  const description = `${title}: ${figures.map(figure => figure.textContent).join(", ")} ${unit}`;
  return element("figure", { class: "chart" },
    element("figcaption", {}, title),
    element("p", { class: "now" }, ...figures, ` ${unit}`),
    drawing(names, points, most || 1, description),
    element("p", { class: "axis" }, element("span", {}, "5 min ago"),
      element("span", {}, `max ${format.format(most)}`), element("span", {}, "now")));
}

function drawing(names, points, top, description) {
  const svg = svgNode("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
    role: "img", "aria-label": description,
  });
  const end = points.at(-1)?.time ?? 0;
  names.forEach((name, index) => {
    const positionOf = point =>
      [WIDTH * (1 - (end - point.time) / SPAN_MS), HEIGHT * (1 - point[name] / top)];
    svg.append(svgNode("path", { d: pathOf(points, name, positionOf), class: ORDER[index] }));
  });
  return svg;
}

function pathOf(points, name, positionOf) {
  let command = "M";
  return points.map(point => {
    if (point[name] === null) {
      command = "M";
      return "";
    }
    const [x, y] = positionOf(point);
    const step = `${command}${x.toFixed(1)} ${y.toFixed(1)}`;
    command = "L";
    return step;
  }).join("");
}
