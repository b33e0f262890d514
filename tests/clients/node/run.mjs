// node run.mjs CLIENT FUNCTION < {"server": {"url", "key"}, "values": [...]}
// Prints {"value": …}, or the client's own error as {"error": …}.
import { readFileSync } from "node:fs";

const [name, call] = process.argv.slice(2);
const { server, values } = JSON.parse(readFileSync(0, "utf8"));
const client = await import(`./clients/${name}.mjs`);
let result;
try {
  result = { value: await client[call](server, ...values) };
} catch (error) {
  result = { error: [error.message, error.body?.message].filter(Boolean).join(" ") };
}
console.log(JSON.stringify(result));
