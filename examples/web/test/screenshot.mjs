// The pictures of the page in the README: npm run screenshot

import { openBrowser, ready } from "./chromium.mjs";

const { browser, url, close } = await openBrowser();
try {
  for (const colorScheme of ["light", "dark"]) {
    const page = await browser.newPage({ viewport: { width: 1120, height: 680 }, colorScheme });
    await page.goto(url);
    await ready(page);
    await page.click('#heatmap button[aria-label="the, value word 6"]');
    await page.waitForSelector("#heatmap td.unseen");
    await page.mouse.move(0, 0);
    await page.evaluate(() => document.activeElement.blur());
    const path = new URL(`../screenshot-${colorScheme}.png`, import.meta.url).pathname;
    await page.screenshot({ path });
    console.log(path);
  }
} finally {
  await close();
}
