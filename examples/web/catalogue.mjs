// Every model of the catalogue against its test vectors, in this browser.

import { RUNTIME, checkTestVectors, listCatalogue, modelBytes, openModel } from "./attention.mjs";
import { isFine, oneLine, reportOf, scientific } from "../node/vectors.mjs";

function row(name, { result, sets, largest, why }) {
  const line = document.createElement("tr");
  const cells = [name, result, why ?? `${scientific(largest)} in ${sets} sets`];
  cells.forEach((text, i) => {
    const cell = Object.assign(document.createElement(i ? "td" : "th"), { textContent: text });
    if (i === 0) cell.scope = "row";
    if (i === 1) cell.className = result === "ok" ? "good" : result === "does not run here" ? "" : "bad";
    if (i === 2 && !why) cell.className = "number";
    line.append(cell);
  });
  return line;
}

/** Fills the table; resolves to { runtime, models: { name: { result, sets, largest, why } } }. */
async function checkAll() {
  const catalogue = await listCatalogue();
  const models = {};
  for (const name of Object.keys(catalogue).sort()) {
    models[name] = await reportOf(async () => {
      const session = await openModel(name, await modelBytes(name));
      return checkTestVectors(session, name, catalogue);
    });
    document.querySelector("#results").append(row(name, models[name]));
  }
  return { runtime: RUNTIME, models };
}

document.querySelector("#caption").textContent = `${RUNTIME}, wasm; ${navigator.userAgent}`;
const verdict = document.querySelector("#verdict");
try {
  globalThis.report = await checkAll();
  verdict.textContent = isFine(globalThis.report.models) ? "All good." : "Something is off: see below.";
} catch (error) {
  verdict.textContent = oneLine(error);
}
document.documentElement.dataset.ready = "true";
