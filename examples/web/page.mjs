// The page: what the controls say goes into the file, what the file gives is drawn.

import {
  RUNTIME, bool, checkTestVectors, float32, float64, listCatalogue, modelBytes, noMask, openModel, run,
} from "./attention.mjs";
import { Heatmap, weightText } from "./heatmap.mjs";
import { loadSample } from "./sample.mjs";
import { oneLine, scientific } from "../node/vectors.mjs";

const SAMPLE = new URL("../../onnx_attn/data/text_similarity.npz", import.meta.url);
const PLAIN = "scale_input";
const CAUSAL = "causal_scale_input";

const find = (selector) => document.querySelector(selector);
const pair = find("#pair");
const scale = find("#scale");
const causal = find("#causal");
const heatmap = new Heatmap(find("#heatmap"), toggle);

const sessions = new Map();
let sample;
let words; // the chosen pair: { query, value }, each { text, tokens, embeddings }
let masks; // { query, value }, a boolean for each word

// One pass: read the controls, run, draw. A change during a run asks for one more pass.

let running = null;
let again = false;

function update() {
  again = true;
  running ??= (async () => {
    while (again) {
      again = false;
      await compute();
    }
    running = null;
  })();
  return running;
}

async function compute() {
  find("#scale-value").value = scale.value;
  const model = causal.checked ? CAUSAL : PLAIN;
  try {
    const session = await sessionOf(model);
    const feeds = feedsNow();
    const start = performance.now();
    const results = await run(session, feeds);
    const milliseconds = performance.now() - start;
    find("#alert").textContent = "";
    draw(model, feeds, results, milliseconds);
  } catch (error) {
    find("#alert").textContent = oneLine(error);
    if (causal.checked && sessions.has(PLAIN)) {
      // The other file still runs: the switch goes back, and the map shows what the controls say.
      causal.checked = false;
      const told = find("#alert").textContent;
      await compute();
      find("#alert").textContent = told;
    }
  }
}

async function sessionOf(model) {
  if (!sessions.has(model)) {
    const session = await openModel(model, await modelBytes(model));
    await run(session, feedsNow()); // a file's first run takes longer than all others: not the time to show
    sessions.set(model, session);
  }
  return sessions.get(model);
}

/** The file's inputs, by name. A side without a masked word is fed "no mask". */
function feedsNow() {
  const { query, value } = words;
  const tensor = ({ embeddings, tokens }) => float32(embeddings, [1, tokens.length, sample.dim]);
  const mask = (side) => (side.every(Boolean) ? noMask() : bool(side, [1, side.length]));
  return {
    query: tensor(query),
    value: tensor(value),
    key: tensor(value),
    query_mask: mask(masks.query),
    value_mask: mask(masks.value),
    scale: float32([scale.valueAsNumber], []),
  };
}

function draw(model, feeds, { output, attention_scores: scores }, milliseconds) {
  const weights = scores.data;
  heatmap.show(weights, masks, causal.checked);
  find("#map-title").textContent = `“${words.query.text}” looks at “${words.value.text}”`;
  find("#time").textContent = `${milliseconds.toFixed(2)} ms`;
  find("#file").textContent = `${model}/model.onnx`;
  list(find("#feeds"), Object.entries(feeds).map(([name, { type, dims, data }]) => {
    const shown = data.length > 12 ? "" : ` = ${type === "bool" ? Array.from(data, Boolean).join(" ") : data.join(" ")}`;
    return `${name} ${type}[${dims.join(", ")}]${shown}`;
  }));

  const found = words.query.tokens.map((word, i) => {
    const row = Array.from(weights.subarray(i * masks.value.length, (i + 1) * masks.value.length));
    const best = row.indexOf(Math.max(...row));
    const rowOfOutput = output.data.subarray(i * sample.dim, (i + 1) * sample.dim);
    return { word, to: words.value.tokens[best], weight: row[best], zero: rowOfOutput.every((x) => x === 0) };
  });
  find("#found").replaceChildren(...found.map(({ word, to, weight, zero }) => {
    const item = document.createElement("li");
    const [what, number] = [document.createElement("span"), document.createElement("span")];
    what.textContent = `${word} → ${to}`;
    number.textContent = zero ? "masked: output 0" : weightText(weight);
    item.append(what, number);
    return item;
  }));
  note();
  announce(found);
}

/** Rows that see no word at all follow a rule that surprises: it is told where it is seen. */
function note() {
  const blind = words.query.tokens.filter((_, i) => !masks.value.some((seen, j) => seen && !(causal.checked && j > i)));
  const text = find("#note");
  text.hidden = blind.length === 0;
  text.textContent =
    `${blind.join(", ")}: no word is left to see. As in Keras all scores of such a row are lowered by 1e9 and the ` +
    "softmax is over all of them, masked words included. float32 keeps multiples of 64 only out there, so the weights come out equal.";
}

let announcing;

/** For screen readers, once the controls rest. */
function announce(found) {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    const clear = found.filter(({ weight, zero }) => weight > 0.5 && !zero);
    const told = clear.map(({ word, to, weight }) => `${word} looks at ${to}, ${weightText(weight)}`);
    find("#announcement").textContent = told.join("; ") || "No word clearly looks at a single other word.";
  }, 400);
}

function list(target, lines) {
  target.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
}

function toggle(side, index) {
  masks[side][index] = !masks[side][index];
  update();
}

function unmask() {
  for (const side of [masks.query, masks.value]) side.fill(true);
  update();
}

function choosePair() {
  words = sample.pairs[Number(pair.value)];
  masks = { query: words.query.tokens.map(() => true), value: words.value.tokens.map(() => true) };
  heatmap.setWords(words.query.tokens, words.value.tokens);
  update();
}

// Bad input: each of these throws, and the next run is as good as the last.

const BREAKING = {
  missing: async () => {
    const rest = feedsNow();
    delete rest.key;
    await run(await sessionOf(PLAIN), rest);
  },
  dtype: async () => {
    const feeds = feedsNow();
    const query = float64(Float64Array.from(feeds.query.data), feeds.query.dims);
    await run(await sessionOf(PLAIN), { ...feeds, query });
  },
  length: async () => {
    const feeds = feedsNow();
    const shorter = feeds.key.data.slice(sample.dim);
    const key = float32(shorter, [1, shorter.length / sample.dim, sample.dim]);
    await run(await sessionOf(PLAIN), { ...feeds, key, value_mask: noMask() });
  },
  file: async () => {
    const bytes = await modelBytes(PLAIN);
    await openModel("half of scale_input", bytes.subarray(0, bytes.length >> 1));
  },
};

async function breakIt(kind, title) {
  await running; // one session runs one thing at a time
  const refusal = find("#refusal");
  try {
    await BREAKING[kind]();
    refusal.textContent = `${title}: the runtime took it.`;
  } catch (error) {
    refusal.textContent = `${title}: ${oneLine(error)}`;
  }
  await update();
}

async function showVectors() {
  const catalogue = await listCatalogue();
  for (const model of [PLAIN, CAUSAL]) {
    const item = document.createElement("li");
    item.dataset.model = model;
    item.textContent = `${model}: checking…`;
    find("#vectors").append(item);
    try {
      const { sets, largest, ok, tolerance } = await checkTestVectors(await sessionOf(model), model, catalogue);
      item.className = ok ? "good" : "bad";
      item.textContent =
        `${model}: largest error ${scientific(largest)} in ${sets.length} data sets, ` +
        `${ok ? "within" : "beyond"} ${tolerance.atol.toExponential()} + ${tolerance.rtol.toExponential()} × |expected|`;
    } catch (error) {
      item.className = "bad";
      item.textContent = `${model}: ${oneLine(error)}`;
    }
  }
}

async function start() {
  find("#runtime").textContent = `${RUNTIME}, wasm`;
  try {
    sample = await loadSample(SAMPLE);
  } catch (error) {
    find("#alert").textContent = oneLine(error);
    return;
  }
  pair.replaceChildren(...sample.pairs.map(({ query, value }, i) => new Option(`${query.text} / ${value.text}`, i)));
  pair.addEventListener("change", choosePair);
  scale.addEventListener("input", update);
  causal.addEventListener("change", update);
  for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
  find("#unmask").addEventListener("click", unmask);
  for (const button of document.querySelectorAll("[data-break]")) {
    button.addEventListener("click", () => breakIt(button.dataset.break, button.textContent));
  }
  for (const control of document.querySelectorAll(":disabled")) control.disabled = false;
  choosePair();
  await running;
  await showVectors();
  document.documentElement.dataset.ready = "true";
}

await start();
