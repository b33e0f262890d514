// A thread of its own, so that long products do not stop the page.

import * as similarity from "./similarity.js";

addEventListener("message", ({ data }) => {
  postMessage(similarity[data.name](...data.inputs));
});
