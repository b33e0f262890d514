// node typescript.mjs FILE.ts [FUNCTION] < [values]
// Bundles a TypeScript file with its imports. Without FUNCTION runs it; otherwise calls FUNCTION
// and prints {"value": …}, or the error as {"error": …}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { build } from "esbuild";

const [file, call] = process.argv.slice(2);
const outfile = file.replace(/\.ts$/, ".cjs");
const nodePaths = [new URL("node_modules", import.meta.url).pathname];
await build({ entryPoints: [file], outfile, bundle: true, platform: "node", nodePaths });
const module = createRequire(import.meta.url)(outfile);
if (call) {
  let result;
  try {
    result = { value: await module[call](...JSON.parse(readFileSync(0, "utf8"))) };
  } catch (error) {
    result = { error: `${error.name}: ${error.message}` };
  }
  console.log(JSON.stringify(result));
  process.exit(); // a timer of the routers runs for a minute
}
