// An attention file in Node: load it, check it, run it with and without a mask, see its errors.
//
//   npm start                                  models/masked
//   npm start -- ../../models/no_key           another file with a value mask

import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import path from "node:path";
import process from "node:process";
import * as ort from "onnxruntime-node";
import { checkTestVectors } from "./catalogue.mjs";
import { numbers, oneLine, scientific } from "./vectors.mjs";

const MASKED = fileURLToPath(new URL("../../models/masked", import.meta.url));

const folder = process.argv[2] ?? MASKED;
// ONNX Runtime logs an error before it throws it: at level 4 the telling is left to us.
const options = { logSeverityLevel: 4 };
const open = (model) => ort.InferenceSession.create(model, options);
const session = await open(path.join(folder, "model.onnx")).catch((error) => {
  console.error(oneLine(error));
  process.exit(1);
});
const float = (data, dims) => new ort.Tensor("float32", data, dims);
const bool = (data, dims) => new ort.Tensor("bool", data, dims);
const noMask = bool([true], [1, 1]);

console.log(`${folder}`);
for (const [title, tensors] of [["inputs", session.inputMetadata], ["outputs", session.outputMetadata]]) {
  console.log(`  ${title}: ${tensors.map((t) => `${t.name} ${t.type}[${t.shape?.join(", ")}]`).join("; ")}`);
}

console.log("\nTest vectors");
const { sets, ok: exact } = await checkTestVectors(session, folder);
for (const set of sets) console.log(`  ${set.name}  largest error ${scientific(set.largest)}  ${set.ok ? "ok" : "TOO LARGE"}`);

// Two queries look at three keys; the values are easy to tell apart.
const key = float([1, 0, 0, 1, 1, 1], [1, 3, 2]);
const feeds = {
  query: float([2, 0, 0, 2], [1, 2, 2]),
  value: float([10, 20, 30], [1, 3, 1]),
  key,
  query_mask: noMask,
  value_mask: noMask,
};
if (!session.inputNames.includes("key")) {
  delete feeds.key;
  feeds.value = key;
}

async function show(title, changes) {
  const { output } = await session.run({ ...feeds, ...changes });
  console.log(`  ${title.padEnd(36)} output [${output.dims}]: ${Array.from(numbers(output), (x) => x.toFixed(4)).join(" ")}`);
}

console.log("\nMasks");
await show("no mask: value_mask [[true]]", {});
await show("value_mask [[true, true, false]]", { value_mask: bool([true, true, false], [1, 3]) });
await show("query_mask [[true, false]]", { query_mask: bool([true, false], [1, 2]) });

// Each of these throws; the program says what the runtime said, and goes on.
let accepted = 0;
async function refused(title, attempt) {
  try {
    await attempt();
    accepted += 1;
    console.log(`  ${title}: NOT REFUSED`);
  } catch (error) {
    console.log(`  ${title}: ${oneLine(error)}`);
  }
}

console.log("\nBad input");
const withoutValue = { ...feeds };
delete withoutValue.value;
await refused("no value", () => session.run(withoutValue));
await refused("float64 query", () => session.run({ ...feeds, query: new ort.Tensor("float64", [2, 0, 0, 2], [1, 2, 2]) }));
await refused("mask of 2 for 3 values", () => session.run({ ...feeds, value_mask: bool([true, false], [1, 2]) }));
if (feeds.key) {
  await refused("3 keys, 2 values", () => session.run({ ...feeds, value: float([10, 20], [1, 2, 1]) }));
}
const whole = await readFile(path.join(folder, "model.onnx"));
await refused("a file cut in half", () => open(whole.subarray(0, whole.length >> 1)));
await refused("a file that is not there", () => open("no_such_model.onnx"));

console.log("\nAnd on it goes");
await show("no mask, as before", {});
process.exitCode = exact && accepted === 0 ? 0 : 1;
