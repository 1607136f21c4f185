// Every model of the catalogue against its test vectors, in Node.
//
//   node catalogue.mjs                      a table; exit code 1 if a model misses its tolerance
//   node catalogue.mjs --json [MODELS]      the same for a program to read

import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import path from "node:path";
import process from "node:process";
import * as ort from "onnxruntime-node";
import { isFine, reportOf, runDataSets, scientific } from "./vectors.mjs";

const CATALOGUE = fileURLToPath(new URL("../../models", import.meta.url));

async function readFiles(folder, kind) {
  const names = (await readdir(folder)).filter((name) => name.startsWith(kind));
  return Promise.all(names.map((name) => readFile(path.join(folder, name))));
}

/** Runs the `test_data_set_K` beside a model: { sets: [{ name, largest, ok }], largest, ok }. */
export async function checkTestVectors(session, folder) {
  const tolerance = JSON.parse(await readFile(path.join(folder, "data.json"), "utf8"));
  const names = (await readdir(folder)).filter((name) => name.startsWith("test_data_set_")).sort();
  const dataSets = await Promise.all(names.map(async (name) => ({
    name,
    inputs: await readFiles(path.join(folder, name), "input_"),
    outputs: await readFiles(path.join(folder, name), "output_"),
  })));
  return runDataSets(ort, session, dataSets, tolerance);
}

async function checkModel(folder) {
  const session = await ort.InferenceSession.create(path.join(folder, "model.onnx"), { logSeverityLevel: 4 });
  return checkTestVectors(session, folder);
}

async function main(models, asJson) {
  const report = {};
  for (const entry of (await readdir(models, { withFileTypes: true })).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.isDirectory()) report[entry.name] = await reportOf(() => checkModel(path.join(models, entry.name)));
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
  process.exitCode = isFine(report) ? 0 : 1;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const rest = process.argv.slice(2).filter((argument) => argument !== "--json");
  await main(rest[0] ?? CATALOGUE, process.argv.includes("--json"));
}
