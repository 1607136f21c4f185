// The pictures of the page in the README: npm run screenshot

import { openBrowser, ready } from "./chromium.mjs";

const { browser, url, close } = await openBrowser();
try {
  for (const colorScheme of ["light", "dark"]) {
    const page = await browser.newPage({ viewport: { width: 1200, height: 900 }, colorScheme });
    await page.goto(url);
    await ready(page);
    await page.click('#heatmap button[aria-label="the, value word 6"]');
    await page.waitForSelector("#heatmap td.unseen");
    await page.mouse.move(0, 0);
    await page.evaluate(() => document.activeElement.blur());
    const path = new URL(`../screenshot-${colorScheme}.png`, import.meta.url).pathname;
    const map = await page.locator("#map").boundingBox();
    await page.screenshot({ path, clip: { x: 0, y: 0, width: 1200, height: map.y + map.height + 12 } });
    console.log(path);
  }
} finally {
  await close();
}
