// A static server for the page: this folder, the catalogue, the sample. Nothing else is reachable.
//
//   npm start               http://localhost:8080
//   PORT=3000 npm start

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import path from "node:path";
import process from "node:process";

const REPOSITORY = fileURLToPath(new URL("../../", import.meta.url));
const PAGE = "/examples/web/";
const SERVED = [PAGE, "/examples/node/vectors.mjs", "/models/", "/onnx_attn/data/"].map((served) =>
  path.join(REPOSITORY, served),
);

const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".mjs": "text/javascript; charset=utf-8",
  ".png": "image/png",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};

const HEADERS = {
  // The page may load from here only. Inline scripts: its import map. Styles: the cells' weights.
  "Content-Security-Policy":
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'",
  // Isolated from other origins a page gets a clock of 5 microseconds instead of 100.
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cache-Control": "no-cache",
  "X-Content-Type-Options": "nosniff",
};

async function answer(request, response) {
  const { pathname } = new URL(request.url, "http://localhost");
  if (pathname === "/") {
    response.writeHead(302, { ...HEADERS, Location: PAGE }).end();
    return;
  }
  const wanted = decodeURIComponent(pathname.endsWith("/") ? `${pathname}index.html` : pathname);
  // path.join resolves every "..", however it was written.
  const file = path.join(REPOSITORY, wanted);
  const isServed = SERVED.some((served) => file.startsWith(served));
  const type = TYPES[path.extname(file)] ?? "application/octet-stream";
  try {
    if (!isServed) throw new Error("not served");
    const body = await readFile(file);
    response.writeHead(200, { ...HEADERS, "Content-Type": type }).end(body);
  } catch {
    response.writeHead(404, { ...HEADERS, "Content-Type": "text/plain; charset=utf-8" }).end(`no ${wanted} here\n`);
  }
}

/** Serves on this machine only; port 0 takes a free one. Resolves to the listening server. */
export function serve(port) {
  const server = createServer((request, response) => {
    answer(request, response).catch((error) => response.writeHead(400).end(`${error.message}\n`));
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => resolve(server));
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const port = Number(process.env.PORT ?? 8080);
  try {
    await serve(port);
    console.log(`http://localhost:${port}${PAGE}`);
  } catch (error) {
    console.error(error.code === "EADDRINUSE" ? `port ${port} is taken: PORT=${port + 1} npm start` : error.message);
    process.exitCode = 1;
  }
}
