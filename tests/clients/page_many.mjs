// Times the responder's page where there is much to show: node page_many.mjs LINK CREDENTIAL WORKLOAD.
// LINK is what `keytrail page` prints.
// Says how long each view took, in milliseconds, as one line of JSON.
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [opening, credential, workload] = process.argv.slice(2);
const address = new URL(opening).origin;
const browser = await chromium.launch({
  executablePath: process.env.KEYTRAIL_CHROMIUM,
  env: { ...process.env, LD_LIBRARY_PATH: process.env.KEYTRAIL_CHROMIUM_LIBRARIES ?? "" },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
try {
  const took = {};
  const context = await browser.newContext({ viewport: { width: 1400, height: 1000 } });
  const first = await context.newPage();
  await first.goto(opening);
  await first.getByRole("table", { name: "Credentials" }).waitFor();
  const view = async (name, hash, ready) => {
    const page = await context.newPage();
    const began = Date.now();
    await page.goto(`${address}/#/${hash}`);
    await ready(page);
    took[`${name}_ms`] = Date.now() - began;
    return page;
  };
  const graph = async (page) => {
    await page.locator("svg.graph .node").first().waitFor();
    await page.getByRole("table", { name: "Where it went" }).waitFor();
  };
  const shown = await view("credential", `credential/${credential}`, graph);
  assert.ok((await shown.getByRole("note").textContent()).includes("more are neither here nor in the files"));
  await view("workload", `workload/${encodeURIComponent(workload)}`, graph);
  // From a row to its destination, as one who reads does.
  const began = Date.now();
  await shown.getByRole("table", { name: "Where it went" }).getByRole("link", { name: /^place-/ }).first().click();
  await shown.waitForURL(/#\/destination\//);
  await shown.getByRole("heading", { level: 2, name: /^place-/ }).waitFor();
  took.destination_ms = Date.now() - began;
  await view("overview", "", (page) => page.getByRole("table", { name: "Credentials" }).waitFor());
  console.log(JSON.stringify(took));
} finally {
  await browser.close();
}
