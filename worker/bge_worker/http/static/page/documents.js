// Documents of a file: a line each, or JSON.

import { RequestError } from "./api.js";

/** Return the texts of a file. Throws RequestError if it has none, or is not what its name says. */
export function readDocuments(name, content) {
  const documents = parse(name, content).map(textOf);
  if (!documents.length) throw new RequestError(`${name} has no documents.`);
  const wrong = documents.findIndex(text => typeof text !== "string");
  if (wrong >= 0) {
    throw new RequestError(`Document ${wrong + 1} of ${name} is neither a text nor has \`text\`.`);
  }
  return documents;
}

function parse(name, content) {
  const lines = content.split(/\r?\n/).filter(line => line.trim());
  try {
    if (/\.jsonl$/i.test(name)) return lines.map(line => JSON.parse(line));
    if (/\.json$/i.test(name)) return [JSON.parse(content)].flat();
  } catch {
    throw new RequestError(`${name} is not valid JSON.`);
  }
  return lines;
}

const textOf = document => typeof document === "string" ? document : document?.text;
