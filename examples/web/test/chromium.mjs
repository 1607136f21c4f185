// The system's Chromium, driven by playwright-core. CHROMIUM names another binary.

import { existsSync } from "node:fs";
import process from "node:process";
import { chromium } from "playwright-core";
import { serve } from "../server.mjs";

const CANDIDATES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** A browser and the page's server: { browser, url, close }. */
export async function openBrowser() {
  const executablePath = process.env.CHROMIUM ?? CANDIDATES.find((candidate) => existsSync(candidate));
  if (!executablePath) throw new Error("no Chromium: apt-get install chromium, or set CHROMIUM to one");
  const server = await serve(0);
  const browser = await chromium.launch({
    executablePath,
    headless: true,
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ],
  });
  return {
    browser,
    url: `http://127.0.0.1:${server.address().port}/examples/web/`,
    async close() {
      await browser.close();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** Waits until the page has run its models and its test vectors. */
export const ready = (page) => page.waitForSelector("html[data-ready=true]", { state: "attached", timeout: 60_000 });
