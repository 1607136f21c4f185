// The page in headless Chromium: its numbers, every control, keyboard, themes, phone, broken files.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { loadSample } from "../sample.mjs";
import { openBrowser, ready } from "./chromium.mjs";
import { attentionScores } from "./keras_attention.mjs";

const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let chromium;
let sample;

before(async () => {
  chromium = await openBrowser();
  sample = await loadSample(new URL("/onnx_attn/data/text_similarity.npz", chromium.url));
});
after(() => chromium?.close());

/** A fresh page, ready; whatever it logs, throws or asks of other hosts fails the test. */
async function open(t, { path = "", prepare, ...options } = {}) {
  const context = await chromium.browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("request", (request) => {
    if (new URL(request.url()).host !== new URL(chromium.url).host) complaints.push(`asked for ${request.url()}`);
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(complaints, []);
  });
  await prepare?.(page);
  await page.goto(chromium.url + path);
  await ready(page);
  return page;
}

/** What the map shows: weights to full precision, their texts, and which cells are striped. */
const shown = (page) =>
  page.$$eval("#heatmap tbody tr", (rows) =>
    rows.map((row) =>
      [...row.querySelectorAll("td")].map((cell) => ({
        weight: Number(cell.style.getPropertyValue("--weight")),
        text: cell.textContent,
        unseen: cell.classList.contains("unseen"),
      })),
    ),
  );

/** Waits until the map shows what Keras computes for these settings. */
async function expectMap(page, { pair = 0, scale = 5, causal = false, masked = [] } = {}) {
  const { query, value } = sample.pairs[pair];
  const mask = value.tokens.map((_, j) => !masked.includes(j));
  const expected = attentionScores(query.embeddings, value.embeddings, sample.dim, { scale, mask, causal });
  await page.waitForFunction(
    (expected) => {
      const rows = [...document.querySelectorAll("#heatmap tbody tr")];
      if (rows.length !== expected.length) return false;
      return rows.every((row, i) => {
        const cells = [...row.querySelectorAll("td")];
        return cells.length === expected[i].length &&
          cells.every((cell, j) => Math.abs(Number(cell.style.getPropertyValue("--weight")) - expected[i][j]) < 1e-5);
      });
    },
    expected,
    { timeout: 10_000 },
  );
  for (const [i, row] of (await shown(page)).entries()) {
    for (const [j, { weight, text, unseen }] of row.entries()) {
      assert.equal(text, weight === 0 ? "0" : weight.toFixed(2));
      assert.equal(unseen, !mask[j] || (causal && j > i), `stripe of cell ${i}, ${j}`);
    }
  }
}

const word = (page, side, index) => page.locator(`#heatmap button[aria-label$=", ${side} word ${index + 1}"]`);
const text = (page, selector) => page.locator(selector).textContent();
const feeds = (page) => page.$$eval("#feeds li", (items) => items.map((item) => item.textContent));

test("every pair shows Keras's numbers", async (t) => {
  const page = await open(t);
  await expectMap(page);
  assert.equal(await page.locator("#pair option").count(), sample.pairs.length);
  for (let pair = 1; pair < sample.pairs.length; pair += 1) {
    await page.selectOption("#pair", String(pair));
    await expectMap(page, { pair });
    const { query, value } = sample.pairs[pair];
    assert.equal(await text(page, "#map-title"), `“${query.text}” looks at “${value.text}”`);
    assert.deepEqual(await page.$$eval("#heatmap thead button", (all) => all.map((b) => b.textContent)), value.tokens);
    assert.deepEqual(await page.$$eval("#heatmap tbody button", (all) => all.map((b) => b.textContent)), query.tokens);
  }
});

test("the scale is an input of the file", async (t) => {
  const page = await open(t);
  await page.focus("#scale");
  await page.keyboard.press("ArrowRight");
  await expectMap(page, { scale: 5.5 });
  assert.equal(await text(page, "#scale-value"), "5.5");
  for (const scale of [0, -2.5, 15]) {
    await page.fill("#scale", String(scale));
    await expectMap(page, { scale });
    assert.ok((await feeds(page)).includes(`scale float32[] = ${scale}`));
  }
});

test("a value word is masked by a click and by a key", async (t) => {
  const page = await open(t);
  assert.ok((await feeds(page)).includes("value_mask bool[1, 1] = true"));
  await word(page, "value", 1).click();
  await expectMap(page, { masked: [1] });
  assert.equal(await word(page, "value", 1).getAttribute("aria-pressed"), "false");
  assert.ok((await feeds(page)).includes("value_mask bool[1, 7] = true false true true true true true"));
  await word(page, "value", 5).focus();
  await page.keyboard.press("Space");
  await expectMap(page, { masked: [1, 5] });
  await page.keyboard.press("Enter");
  await expectMap(page, { masked: [1] });
  // Drawing leaves the focus where it was.
  assert.equal(await page.evaluate(() => document.activeElement.ariaLabel), "the, value word 6");
  await page.click("#unmask");
  await expectMap(page);
  assert.equal(await page.locator('#heatmap button[aria-pressed="false"]').count(), 0);
});

test("a masked query word gives an output of zeros, and its weights stay", async (t) => {
  const page = await open(t);
  const before = await shown(page);
  await word(page, "query", 1).click();
  await page.waitForFunction(() => document.querySelectorAll("#found li")[1].textContent.includes("output 0"));
  const found = await page.$$eval("#found li", (items) => items.map((item) => item.textContent));
  assert.equal(found.filter((line) => line.includes("output 0")).length, 1);
  assert.deepEqual(await shown(page), before);
  assert.ok((await feeds(page)).includes("query_mask bool[1, 6] = true false true true true true"));
});

test("causal takes the second file", async (t) => {
  const page = await open(t);
  await page.focus("#causal");
  await page.keyboard.press("Space");
  await expectMap(page, { causal: true });
  assert.match(await text(page, "#file"), /causal_scale_input/);
  // Word 1 masked, the first row sees nothing: uniform over all words, future ones too.
  await word(page, "value", 0).click();
  await expectMap(page, { causal: true, masked: [0] });
  assert.match(await text(page, "#note"), /^the: no word is left to see/);
  assert.equal((await shown(page))[0].every(({ text }) => text === "0.14"), true);
  await page.keyboard.press("Shift+Tab");
  await page.click("#causal");
  await expectMap(page, { masked: [0] });
  assert.equal(await page.locator("#note").isVisible(), false);
});

test("with all words masked the rows are uniform, and the page says why", async (t) => {
  const page = await open(t);
  const { tokens } = sample.pairs[0].value;
  for (const j of tokens.keys()) await word(page, "value", j).click();
  await expectMap(page, { masked: [...tokens.keys()] });
  assert.match(await text(page, "#note"), /no word is left to see.*1e9/);
});

test("every control is reached by Tab, and each has a name", async (t) => {
  const page = await open(t);
  const reached = [];
  for (let i = 0; i < 60; i += 1) {
    await page.keyboard.press("Tab");
    const name = await page.evaluate(() => {
      const { activeElement: at } = document;
      return at === document.body ? null : at.ariaLabel || at.id || at.textContent.trim();
    });
    if (name === null) break;
    reached.push(name);
  }
  const { query, value } = sample.pairs[0];
  assert.deepEqual(reached, [
    "pair",
    ...value.tokens.map((token, j) => `${token}, value word ${j + 1}`),
    ...query.tokens.map((token, i) => `${token}, query word ${i + 1}`),
    "scale", "causal", "unmask",
    "Check every model of the catalogue in this browser",
    "Leave out the key", "Query in float64", "Key shorter than value", "A file cut in half",
  ]);
});

test("a screen reader is told of changes, once the controls rest", async (t) => {
  const page = await open(t);
  await page.waitForFunction(() => document.querySelector("#announcement").textContent.includes("puppy looks at dog, 0.84"));
  await word(page, "value", 1).click();
  await page.waitForFunction(() => !document.querySelector("#announcement").textContent.includes("dog"));
});

test("bad input shows the runtime's words, and the page goes on", async (t) => {
  const page = await open(t);
  const expected = {
    missing: /^Leave out the key: .*'key' is missing/,
    dtype: /^Query in float64: .*tensor\(double\).*tensor\(float\)/,
    length: /^Key shorter than value: .*key_and_value_must_have_the_same_length/,
    file: /^A file cut in half: half of scale_input is no model that can be run: .*protobuf/i,
  };
  for (const [kind, words] of Object.entries(expected)) {
    await page.click(`[data-break=${kind}]`);
    await page.waitForFunction((title) => document.querySelector("#refusal").textContent.startsWith(title),
      await text(page, `[data-break=${kind}]`));
    const refusal = await text(page, "#refusal");
    assert.match(refusal, words);
    assert.doesNotMatch(refusal, /\n/);
    await word(page, "value", 2).click();
    await expectMap(page, { masked: [2] });
    await word(page, "value", 2).click();
    await expectMap(page);
  }
});

/** Half of a model's file instead of the whole. */
const truncate = (model) => (page) =>
  page.route(`**/models/${model}/model.onnx`, async (route) => {
    const response = await route.fetch();
    const body = await response.body();
    await route.fulfill({ response, body: body.subarray(0, body.length >> 1) });
  });

test("a broken first file is a message, and the other file still works", async (t) => {
  const page = await open(t, { prepare: truncate("scale_input") });
  assert.match(await text(page, "#alert"), /^scale_input is no model that can be run: /);
  assert.match(await text(page, "#vectors [data-model=scale_input]"), /is no model that can be run/);
  assert.match(await text(page, "#vectors [data-model=causal_scale_input]"), /within/);
  await page.click("#causal");
  await expectMap(page, { causal: true });
  assert.equal(await text(page, "#alert"), "");
});

test("a broken causal file is a message, and the switch goes back", async (t) => {
  const page = await open(t, { prepare: truncate("causal_scale_input") });
  await expectMap(page);
  await page.click("#causal");
  await page.waitForSelector("#alert:not(:empty)");
  assert.match(await text(page, "#alert"), /^causal_scale_input is no model that can be run: /);
  assert.equal(await page.isChecked("#causal"), false);
  await word(page, "value", 1).click();
  await expectMap(page, { masked: [1] });
});

test("the test vectors hold for both files", async (t) => {
  const page = await open(t);
  const lines = await page.$$eval("#vectors li", (items) => items.map((item) => item.textContent));
  assert.equal(lines.length, 2);
  for (const line of lines) {
    const [, largest, sets] = /largest error (\S+) in (\d+) data sets, within 2e-6 \+ 1e-5/.exec(line);
    assert.ok(Number(largest) < 1e-5 && Number(sets) >= 3, line);
  }
  assert.match(await text(page, "#time"), /^\d+\.\d\d ms$/);
  assert.match(await text(page, "#runtime"), /^onnxruntime-web \d+\.\d+\.\d+, wasm$/);
});

test("while test vectors are checked the page says so", async (t) => {
  let release;
  const held = new Promise((resolve) => { release = resolve; });
  const context = await chromium.browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  await page.route("**/test_data_set_*/**", async (route) => {
    await held;
    await route.continue();
  });
  await page.goto(chromium.url);
  await page.waitForSelector("#vectors li");
  assert.equal(await text(page, "#vectors [data-model=scale_input]"), "scale_input: checking…");
  release();
  await ready(page);
  assert.match(await text(page, "#vectors [data-model=scale_input]"), /largest error/);
});

test("a file's first run is not shown as its time", async (t) => {
  const slowAtFirst = `
const met = new WeakSet();
export async function run(session, feeds) {
  if (!met.has(session)) await new Promise((resolve) => setTimeout(resolve, 2000));
  met.add(session);
  return quickRun(session, feeds);
}`;
  const page = await open(t, {
    prepare: (page) => page.route("**/attention.mjs", async (route) => {
      const response = await route.fetch();
      const body = await response.text();
      const renamed = body.replace("export const run =", "const quickRun =");
      assert.notEqual(renamed, body);
      await route.fulfill({ response, body: renamed + slowAtFirst });
    }),
  });
  const milliseconds = async () => Number.parseFloat(await text(page, "#time"));
  assert.ok(await milliseconds() < 1000, await text(page, "#time"));
  await page.click("#causal");
  await expectMap(page, { causal: true });
  assert.ok(await milliseconds() < 1000, await text(page, "#time"));
});

test("at 1,280 pixels the choice shows both sentences", async (t) => {
  const page = await open(t, { viewport: { width: 1280, height: 800 } });
  for (let pair = 0; pair < sample.pairs.length; pair += 1) {
    await page.selectOption("#pair", String(pair));
    const [wanted, given] = await page.$eval("#pair", (select) => {
      const context = document.createElement("canvas").getContext("2d");
      context.font = getComputedStyle(select).font;
      return [context.measureText(select.selectedOptions[0].text).width, select.clientWidth];
    });
    assert.ok(wanted + 40 < given, `pair ${pair}: ${wanted} of ${given} pixels`);
  }
});

test("on a phone the map begins in the first screen, and its weights are seen", async (t) => {
  const page = await open(t, { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true });
  const { bottom } = (await page.locator("#heatmap tbody tr").nth(2).boundingBox().then((box) => ({ bottom: box.y + box.height })));
  assert.ok(bottom < 844, `the third row ends at ${bottom}`);
});

test("a wrong number in a test vector is seen", async (t) => {
  const spoil = (page) =>
    page.route("**/models/scale_input/test_data_set_1/output_0.pb", async (route) => {
      const response = await route.fetch();
      const body = await response.body();
      body[body.length - 1] ^= 0x40; // the exponent of the last float
      await route.fulfill({ response, body });
    });
  const page = await open(t, { prepare: spoil });
  assert.match(await text(page, "#vectors [data-model=scale_input]"), /beyond/);
  assert.match(await text(page, "#vectors [data-model=causal_scale_input]"), /within/);
});

test("every model of the catalogue runs here, but the one with optional inputs", async (t) => {
  const page = await open(t, { path: "catalogue.html" });
  const { models } = await page.evaluate(() => globalThis.report);
  for (const [name, { result, sets }] of Object.entries(models)) {
    if (name === "optional_inputs") assert.equal(result, "does not run here");
    else assert.ok(result === "ok" && sets >= 3, `${name}: ${result}`);
  }
  assert.equal(await page.locator("#results tr").count(), Object.keys(models).length);
  assert.equal(await text(page, "#verdict"), "All good.");
});

// WCAG 2.2: relative luminance and contrast ratio.
const contrast = (a, b) => {
  const luminance = (rgb) =>
    rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
};

for (const colorScheme of ["light", "dark"]) {
  test(`${colorScheme} mode: readable at every weight, nothing for axe to find`, async (t) => {
    const page = await open(t, { colorScheme });
    const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const [red] = background.match(/\d+/g).map(Number);
    assert.equal(red < 128, colorScheme === "dark", background);
    const colours = await page.evaluate(() => {
      const cell = document.querySelector("#heatmap td:not(.corner)");
      // A canvas turns any CSS colour into red, green, blue.
      const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
        .getContext("2d", { willReadFrequently: true });
      const rgb = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)].map((c) => c / 255);
      };
      return Array.from({ length: 101 }, (_, i) => {
        cell.style.setProperty("--weight", i / 100);
        const { color, backgroundColor } = getComputedStyle(cell);
        return [rgb(color), rgb(backgroundColor)];
      });
    });
    colours.forEach(([ink, paper], i) => assert.ok(contrast(ink, paper) >= 4.5, `weight ${i / 100}: ${contrast(ink, paper)}`));
    assert.ok(contrast(colours[0][1], colours[100][1]) > 5, "weights 0 and 1 look different");

    await word(page, "value", 1).click();
    await page.click("[data-break=missing]");
    await page.addScriptTag({ content: AXE });
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]), []);
  });
}

for (const width of [360, 320]) {
  test(`at ${width} pixels nothing sticks out, and words can be touched`, async (t) => {
    const page = await open(t, { viewport: { width, height: 740 }, hasTouch: true, isMobile: true });
    for (let pair = 0; pair < sample.pairs.length; pair += 1) {
      await page.selectOption("#pair", String(pair));
      await expectMap(page, { pair });
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width, `pair ${pair}`);
      // Whole words, whole numbers, targets of 24 pixels (WCAG 2.5.8).
      const cut = await page.$$eval("#heatmap :is(th button, tbody td)", (all) =>
        all.filter((e) => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1).map((e) => e.textContent));
      if (width === 360) assert.deepEqual(cut, [], `pair ${pair}`);
      const sizes = await page.$$eval("#heatmap button", (all) => all.map((b) => b.getBoundingClientRect()).map(({ width, height }) => Math.min(width, height)));
      assert.ok(Math.min(...sizes) >= 24, `a word of ${Math.min(...sizes)} pixels`);
    }
    await page.selectOption("#pair", "0");
    await word(page, "value", 1).tap();
    await expectMap(page, { masked: [1] });
    await page.click("[data-break=length]");
    await page.waitForSelector("#refusal:not(:empty)");
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width);
  });
}
