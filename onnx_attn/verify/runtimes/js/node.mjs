// node node.mjs PACKAGE JOB RESULTS: runs a job with onnxruntime-node or onnxruntime-web.
import { appendFileSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import protobuf from "protobufjs/light.js";
import { answer, tensorReader } from "./conformance.mjs";

const [packageName, job, results] = process.argv.slice(2);
const ort = await import(packageName);
const provider = packageName === "onnxruntime-web" ? "wasm" : "cpu";
const options = { executionProviders: [provider], logSeverityLevel: 3 };
if (provider === "wasm") ort.env.wasm.numThreads = 1;

appendFileSync(results, "ready\n");
const readTensor = tensorReader(protobuf, ort);
for (const task of JSON.parse(readFileSync(job, "utf8"))) {
  const line = await answer(ort, readTensor, (path) => readFile(path), options, task);
  appendFileSync(results, `${JSON.stringify(line)}\n`);
}
process.exit(0); // threads of a wasm build would keep Node alive
