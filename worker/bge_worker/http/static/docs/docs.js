const element = (tag, text, parent) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
};

const resolve = (api, schema) => {
  if (schema.$ref) return api.components.schemas[schema.$ref.split("/").pop()];
  return schema;
};

const typeOf = (api, schema) => {
  const branches = schema.anyOf || schema.oneOf;
  if (branches) return branches.map(branch => typeOf(api, branch)).filter(t => t !== "null").join(" or ");
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map(value => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return `list of ${typeOf(api, schema.items || {})}`;
  const limits = [schema.minimum ?? "", schema.maximum ?? ""];
  return (schema.type || "any") + (limits.join("") ? ` ${limits[0]}…${limits[1]}` : "");
};

const fieldTable = (api, schema, parent) => {
  const table = element("table", undefined, parent);
  for (const [name, field] of Object.entries(schema.properties || {})) {
    const row = element("tr", undefined, table);
    element("code", name, element("td", undefined, row));
    element("td", (schema.required || []).includes(name) ? "required" : "", row);
    element("td", typeOf(api, field), row);
    element("td", "default" in field ? JSON.stringify(field.default) : field.description || "", row);
  }
};

const exampleOf = schema => Object.fromEntries(
  Object.entries(schema.properties || {}).filter(([, f]) => f.examples).map(([n, f]) => [n, f.examples[0]]));

const send = async (method, path, body, output) => {
  const headers = {"Content-Type": "application/json"};
  const key = document.getElementById("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  output.textContent = "…";
  try {
    const reply = await fetch("." + path, {method, headers, body: method === "GET" ? undefined : body});
    const text = await reply.text();
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 1); } catch {}
    output.textContent = `${reply.status}\n${shown.slice(0, 20000)}`;
  } catch (error) {
    output.textContent = String(error);
  }
};

const showRoute = (api, path, method, operation, parent) => {
  const details = element("details", undefined, parent);
  const summary = element("summary", undefined, details);
  element("span", method.toUpperCase(), summary).className = "method";
  element("code", path, summary);
  const content = operation.requestBody?.content["application/json"].schema;
  const bodies = content ? (content.anyOf || [content]).map(schema => resolve(api, schema)) : [];
  for (const body of bodies) fieldTable(api, body, details);
  const address = element("input", undefined, details);
  address.value = path;
  const area = method === "get" ? null : element("textarea", undefined, details);
  if (area) {
    area.rows = 5;
    area.value = JSON.stringify(bodies.length ? exampleOf(bodies[0]) : {}, null, 1);
  }
  const button = element("button", "Send", details);
  const output = element("pre", "", details);
  button.onclick = () => send(method.toUpperCase(), address.value, area?.value, output);
};

fetch("openapi.json").then(reply => reply.json()).then(api => {
  const main = document.getElementById("routes");
  main.textContent = "";
  for (const [path, operations] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(operations))
      showRoute(api, path, method, operation, main);
}).catch(error => { document.getElementById("routes").textContent = String(error); });
