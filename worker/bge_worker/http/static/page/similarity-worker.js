// A thread of its own, so that long products do not stop the page.

import { align, cosines } from "./similarity.js";

const FUNCTIONS = { align, cosines };

addEventListener("message", ({ data }) => {
  postMessage(FUNCTIONS[data.name](...data.inputs));
});
