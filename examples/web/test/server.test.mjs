// The server: what it serves, what it does not, and that it is a page of its own origin only.

import assert from "node:assert/strict";
import http from "node:http";
import { after, before, test } from "node:test";
import { serve } from "../server.mjs";

let server;
before(async () => {
  server = await serve(0);
});
after(() => new Promise((resolve) => server.close(resolve)));

// fetch would tidy up a path before asking for it.
const get = (path) =>
  new Promise((resolve, reject) => {
    http.get({ port: server.address().port, path, agent: false }, (response) => {
      response.resume();
      response.on("end", () => resolve(response));
    }).on("error", reject);
  });

test("the root leads to the page", async () => {
  const response = await get("/");
  assert.equal(response.statusCode, 302);
  assert.equal(response.headers.location, "/examples/web/");
});

test("the page, the models and the sample are served, with their types", async () => {
  for (const [path, type] of [
    ["/examples/web/", "text/html"],
    ["/examples/web/page.mjs", "text/javascript"],
    ["/examples/web/node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm", "application/wasm"],
    ["/examples/node/vectors.mjs", "text/javascript"],
    ["/models/scale_input/model.onnx", "application/octet-stream"],
    ["/models/SHA256SUMS", "application/octet-stream"],
    ["/onnx_attn/data/text_similarity.npz", "application/octet-stream"],
  ]) {
    const { statusCode, headers } = await get(path);
    assert.equal(statusCode, 200, path);
    assert.ok(headers["content-type"].startsWith(type), `${path}: ${headers["content-type"]}`);
    assert.match(headers["content-security-policy"], /default-src 'self'/);
  }
});

test("nothing else is", async () => {
  for (const path of [
    "/pyproject.toml", "/.git/HEAD", "/examples/node/package.json", "/onnx_attn/layer/attention.py",
    "/models/../pyproject.toml", "/models/%2e%2e/pyproject.toml", "/models/..%2fpyproject.toml",
    "/examples/web/..%2f..%2fpyproject.toml", "/models/", "/models/no_such_model/model.onnx", "//etc/passwd",
  ]) {
    assert.equal((await get(path)).statusCode, 404, path);
  }
  assert.equal((await get("/models/%")).statusCode, 400);
});
