// The page catalogue.html in headless Chromium, its report on standard output as JSON.
//
//   npm run --silent catalogue

import process from "node:process";
import { isFine } from "../../node/vectors.mjs";
import { openBrowser, ready } from "./chromium.mjs";

const { browser, url, close } = await openBrowser();
try {
  const page = await browser.newPage();
  await page.goto(`${url}catalogue.html`);
  await ready(page);
  const report = await page.evaluate(() => globalThis.report);
  if (!report) throw new Error(await page.locator("#verdict").textContent());
  report.browser = `Chromium ${browser.version()}`;
  console.log(JSON.stringify(report, null, 2));
  process.exitCode = isFine(report.models) ? 0 : 1;
} finally {
  await close();
}
