// Requests to the server, with its key.

import { askForKey } from "./key.js";

const STORED_KEY = "bge-serverless key"; // of the tab: sessionStorage

let isCancelled = false;

/** A failure, as a sentence for the reader. */
export class RequestError extends Error {}

export const embed = body => ({ method: "POST", path: "/native/embed", body });
export const rerank = body => ({ method: "POST", path: "/native/rerank", body });
export const tokenize = texts => ({ method: "POST", path: "/tokenize", body: { inputs: texts } });
export const INFO = { method: "GET", path: "/native/info" };
export const METRICS = { method: "GET", path: "/metrics" };

const storedKey = () => sessionStorage.getItem(STORED_KEY);
export const hasKey = () => storedKey() !== null;
export const forgetKey = () => sessionStorage.removeItem(STORED_KEY);

/** Whether the dialog was cancelled: then only a request of the reader opens it again. */
export const isKeyMissing = () => isCancelled;

/** Return the response to a request. Throws RequestError; AbortError if `signal` is aborted. */
export async function send(request, signal) {
  for (;;) {
    const key = storedKey();
    const response = await attempt(request, key, signal);
    if (response.ok) return response;
    if (response.status !== 401) throw new RequestError(await sentenceOf(response));
    if (storedKey() === key) await replaceKey(); // else another request has replaced it
  }
}

export async function sendJson(request, signal) {
  return (await send(request, signal)).json();
}

/** Return the address of a route, also where a proxy serves the page under a path. */
export const address = path => new URL(path.slice(1), document.baseURI).href;

/** Ask for another key than the refused one. Throws RequestError if the dialog is cancelled. */
async function replaceKey() {
  const isRefused = hasKey();
  forgetKey();
  const key = await askForKey(isRefused);
  isCancelled = key === null;
  if (isCancelled) throw new RequestError("This server needs a key.");
  sessionStorage.setItem(STORED_KEY, key);
}

async function attempt({ method, path, body }, key, signal) {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  if (key !== null) headers.authorization = `Bearer ${key}`;
  const content = body === undefined ? undefined : JSON.stringify(body);
  try {
    return await fetch(address(path), { method, headers, body: content, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The server does not answer. Is it still running?");
  }
}

/** Return the message of an error reply, without the name of its type. */
async function sentenceOf(response) {
  const body = await response.json().catch(() => ({}));
  const messages = [body.error?.message, body.error, body.message];
  const message = messages.find(text => typeof text === "string");
  if (message === undefined) return `The server answered with status ${response.status}.`;
  const sentence = message.replace(/^\w+Error: /, "");
  return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
}
