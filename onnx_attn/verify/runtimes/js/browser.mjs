// node browser.mjs CHROMIUM JOB RESULTS: runs a job with onnxruntime-web in headless Chromium.
import { appendFileSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const [executablePath, job, results] = process.argv.slice(2);
const here = fileURLToPath(new URL(".", import.meta.url));
const tasks = JSON.parse(readFileSync(job, "utf8"));

// The page sees these files, under these names, and nothing else of the disk.
const PAGE = "/";
const served = new Map([
  ["/conformance.mjs", join(here, "conformance.mjs")],
  ["/protobuf.js", join(here, "node_modules/protobufjs/dist/light/protobuf.min.js")],
]);
for (const name of ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"])
  served.set(`/ort/${name}`, join(here, "node_modules/onnxruntime-web/dist", name));
const serve = (path) => {
  const url = `/files/${served.size}`;
  served.set(url, path);
  return url;
};
const pageTasks = tasks.map((task) => ({
  model: serve(task.model),
  feeds: task.feeds.map((feed) => ({ ...feed, files: feed.files.map(serve) })),
}));

const TYPES = { ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm" };
const server = createServer(async (request, response) => {
  if (request.url === PAGE) {
    response.setHeader("content-type", "text/html");
    response.end('<!doctype html><title>conformance</title><script src="/protobuf.js"></script>');
    return;
  }
  const path = served.get(request.url);
  if (path === undefined) {
    response.writeHead(404).end();
    return;
  }
  const type = TYPES[extname(path)] ?? "application/octet-stream";
  response.writeHead(200, { "content-type": type }).end(await readFile(path));
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

const browser = await chromium.launch({
  executablePath,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${server.address().port}${PAGE}`);
appendFileSync(results, "ready\n");
for (const task of pageTasks) {
  const line = await page.evaluate(async (given) => {
    const ort = await import("/ort/ort.wasm.min.mjs");
    const { answer, tensorReader } = await import("/conformance.mjs");
    ort.env.wasm.wasmPaths = "/ort/";
    ort.env.wasm.numThreads = 1;
    const read = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());
    const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
    return answer(ort, tensorReader(globalThis.protobuf, ort), read, options, given);
  }, task);
  appendFileSync(results, `${JSON.stringify(line)}\n`);
}
await browser.close();
server.close();
