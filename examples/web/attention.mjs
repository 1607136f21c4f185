// The files of the catalogue in the browser: fetched, opened, checked, run.

import * as ort from "onnxruntime-web/wasm";
import { oneLine, runDataSets } from "../node/vectors.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
// Sentences are small: a second thread costs more than it brings.
ort.env.wasm.numThreads = 1;

// A page shows errors itself; ONNX Runtime would write each to the console as well.
const QUIET = { logSeverityLevel: 4 };

export const RUNTIME = `onnxruntime-web ${ort.env.versions.web}`;

const MODELS = new URL("../../models/", import.meta.url);

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname}: the server answers ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

export const modelBytes = (name) => fetchBytes(new URL(`${name}/model.onnx`, MODELS));

/** A session of an ONNX file's bytes. Throws an error that names the file. */
export async function openModel(name, bytes) {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], ...QUIET });
  } catch (error) {
    throw new Error(`${name} is no model that can be run: ${oneLine(error)}`, { cause: error });
  }
}

export const run = (session, feeds) => session.run(feeds, QUIET);

/** The files of the catalogue, from its list of checksums: { model: { data set: [path] } }. */
export async function listCatalogue() {
  const text = new TextDecoder().decode(await fetchBytes(new URL("SHA256SUMS", MODELS)));
  const models = {};
  for (const [, path] of text.matchAll(/^[0-9a-f]{64}\s+(\S+)$/gm)) {
    const [model, dataSet, file] = path.split("/");
    if (file !== undefined) ((models[model] ??= {})[dataSet] ??= []).push(path);
  }
  return models;
}

/** Runs a model's data sets: { sets: [{ name, largest, ok }], largest, ok }. */
export async function checkTestVectors(session, model, catalogue) {
  const tolerance = JSON.parse(new TextDecoder().decode(await fetchBytes(new URL(`${model}/data.json`, MODELS))));
  const read = (paths, kind) =>
    Promise.all(paths.filter((path) => path.includes(`/${kind}_`)).map((path) => fetchBytes(new URL(path, MODELS))));
  const dataSets = await Promise.all(
    Object.entries(catalogue[model] ?? {}).map(async ([name, paths]) => ({
      name,
      inputs: await read(paths, "input"),
      outputs: await read(paths, "output"),
    })),
  );
  return { ...(await runDataSets(ort, session, dataSets, tolerance)), tolerance };
}

export const float32 = (data, dims) => new ort.Tensor("float32", data, dims);
export const float64 = (data, dims) => new ort.Tensor("float64", data, dims);
export const bool = (data, dims) => new ort.Tensor("bool", data, dims);

/** [[true]], which every file with masks takes for "no mask". */
export const noMask = () => bool([true], [1, 1]);
