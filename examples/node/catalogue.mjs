// Every model of the catalogue against its test vectors, in Node.
//
//   node catalogue.mjs                      a table; exit code 1 if a model misses its tolerance
//   node catalogue.mjs --json [MODELS]      the same for a program to read

import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import path from "node:path";
import process from "node:process";
import * as ort from "onnxruntime-node";
import { compare, oneLine, readTensor, scientific } from "./tensors.mjs";

const CATALOGUE = fileURLToPath(new URL("../../models", import.meta.url));

async function readTensors(folder, kind) {
  const files = (await readdir(folder)).filter((file) => file.startsWith(kind));
  return Promise.all(files.map(async (file) => readTensor(await readFile(path.join(folder, file)))));
}

/**
 * Runs the `test_data_set_K` beside a model: { sets: [{ name, largest, ok }], ok }.
 * Throws the runtime's error, or ours where the runtime would leave an input unread.
 */
export async function checkTestVectors(session, folder) {
  const tolerance = JSON.parse(await readFile(path.join(folder, "data.json"), "utf8"));
  const names = (await readdir(folder)).filter((name) => name.startsWith("test_data_set_")).sort();
  if (names.length === 0) throw new Error(`${folder} holds no test_data_set_K`);
  const sets = [];
  for (const name of names) {
    const feeds = {};
    for (const tensor of await readTensors(path.join(folder, name), "input_")) {
      // A name it does not list is one that onnxruntime-node drops without a word.
      if (!session.inputNames.includes(tensor.name)) throw new OptionalInput(tensor.name);
      feeds[tensor.name] = new ort.Tensor(tensor.type, tensor.data, tensor.dims);
    }
    const results = await session.run(feeds);
    let largest = 0;
    let ok = true;
    for (const expected of await readTensors(path.join(folder, name), "output_")) {
      const compared = compare(results[expected.name], expected, tolerance);
      largest = Math.max(largest, compared.largest);
      ok &&= compared.ok;
    }
    sets.push({ name, largest, ok });
  }
  return { sets, ok: sets.every((set) => set.ok) };
}

/** The file has this input as an optional one, which onnxruntime-node cannot override. */
export class OptionalInput extends Error {
  constructor(name) {
    super(`onnxruntime-node ignores the optional input ${name}: export with inputs="required"`);
  }
}

async function checkModel(folder) {
  try {
    const session = await ort.InferenceSession.create(path.join(folder, "model.onnx"), { logSeverityLevel: 4 });
    const { sets, ok } = await checkTestVectors(session, folder);
    const largest = Math.max(...sets.map((set) => set.largest));
    return { sets: sets.length, largest, result: ok ? "ok" : "error too large" };
  } catch (error) {
    const result = error instanceof OptionalInput ? "does not run here" : "failed";
    return { sets: 0, largest: null, result, why: oneLine(error) };
  }
}

async function main(models, asJson) {
  const report = {};
  for (const entry of (await readdir(models, { withFileTypes: true })).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.isDirectory()) report[entry.name] = await checkModel(path.join(models, entry.name));
  }
  if (asJson) {
    console.log(JSON.stringify({ runtime: `onnxruntime-node ${ort.env.versions.node}`, models: report }, null, 2));
  } else {
    console.log(`onnxruntime-node ${ort.env.versions.node}`);
    for (const [name, { sets, largest, result, why }] of Object.entries(report)) {
      const error = largest === null ? "" : `${sets} sets, largest error ${scientific(largest)}`;
      console.log(`  ${name.padEnd(22)} ${result.padEnd(17)} ${why ?? error}`);
    }
  }
  const results = Object.values(report).map(({ result }) => result);
  const fine = results.includes("ok") && results.every((result) => result === "ok" || result === "does not run here");
  process.exitCode = fine ? 0 : 1;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const rest = process.argv.slice(2).filter((argument) => argument !== "--json");
  await main(rest[0] ?? CATALOGUE, process.argv.includes("--json"));
}
