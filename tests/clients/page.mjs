// Uses the responder's page as a person does, in a real Chromium: node page.mjs LINK CREDENTIAL DIRECTORY.
// LINK is what `keytrail page` prints.
// Says what it saw as one line of JSON; ends with an error where something is not there.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const [opening, credential, directory] = process.argv.slice(2);
const address = new URL(opening).origin;
const browser = await chromium.launch({
  executablePath: process.env.KEYTRAIL_CHROMIUM,
  env: { ...process.env, LD_LIBRARY_PATH: process.env.KEYTRAIL_CHROMIUM_LIBRARIES ?? "" },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
try {
  const context = await browser.newContext({ viewport: { width: 1400, height: 1000 }, acceptDownloads: true, colorScheme: "light" });
  const page = await context.newPage();
  const trouble = [];
  const elsewhere = [];
  page.on("console", (message) => {
    if (message.type() === "error") trouble.push(message.text());
  });
  page.on("pageerror", (error) => trouble.push(String(error)));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(address) && !url.startsWith("blob:") && !url.startsWith("data:")) elsewhere.push(url);
  });

  const began = Date.now();
  await page.goto(opening);
  const findings = page.getByRole("table", { name: "Findings" });
  await findings.waitFor();
  const loaded = Date.now() - began;
  // The code is not in the address any more, and works once.
  assert.ok(!page.url().includes("code="), page.url());
  const stranger = await (await browser.newContext()).newPage();
  await stranger.goto(opening);
  await stranger.getByText("This link was used").waitFor();
  await stranger.reload();
  await stranger.getByLabel("enter the agent's token").fill("FAKE-not-the-token");
  await stranger.keyboard.press("Enter");
  await stranger.getByText("This is not the agent's token").waitFor();
  await stranger.close();
  // From a finding to its graph.
  const row = findings.getByRole("row").filter({ hasText: "unexpected-hop" }).first();
  await row.getByRole("link").click();
  const graph = page.locator("svg.graph");
  await graph.waitFor();
  await page.waitForURL(/#\/credential\//);
  const drawn = (await graph.locator("text").allTextContents()).join("\n");
  assert.ok(drawn.includes("/usr/bin/curl"), drawn);
  assert.ok(drawn.includes(credential), drawn);
  assert.ok(drawn.includes("unexpected, presented"), drawn);
  assert.equal(await graph.locator(".edge.unexpected").count() > 0, true);
  await page.locator("svg.timeline").waitFor();
  assert.ok((await page.locator("details.gaps summary").textContent()).startsWith("Not seen:"));
  if (directory !== undefined) await page.screenshot({ path: `${directory}/page-credential.png`, fullPage: true });

  // To the answer by keyboard, and the view stays.
  const view = page.url();
  await page.locator("a.skip").focus();
  await page.keyboard.press("Enter");
  assert.equal(page.url(), view);
  assert.equal(await page.evaluate(() => document.activeElement.id), "answer");

  // The view as files.
  const file = async (name) => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name, exact: true }).click()]);
    return readFile(await download.path(), "utf8");
  };
  assert.equal(JSON.parse(await file("JSON")).who.credentials[0].id, credential);
  const sheet = await file("CSV");
  assert.ok(sheet.split("\r\n").length > 1, sheet);
  const drawing = await file("SVG");
  assert.ok(drawing.startsWith("<svg") && drawing.includes("/usr/bin/curl"), drawing.slice(0, 200));

  // By keyboard: from the graph to the workload's blast radius, by a node that has the focus.
  const link = page.url();
  const node = graph.getByRole("link", { name: "workload /usr/bin/curl" }).first();
  await node.focus();
  await page.keyboard.press("Enter");
  await page.waitForURL(/#\/workload\//);
  await page.getByText("blast radius: 1 credentials").waitFor();
  if (directory !== undefined) await page.screenshot({ path: `${directory}/page-workload.png`, fullPage: true });

  // Search, from anywhere.
  await page.locator("body").press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "query");
  await page.keyboard.type(credential);
  await page.keyboard.press("Enter");
  await page.waitForURL(/#\/credential\//);
  await page.getByRole("heading", { level: 2 }).waitFor();
  // What is not there is said, and nothing breaks.
  await page.locator("#query").fill("<img src=x onerror=alert(1)>");
  await page.keyboard.press("Enter");
  await page.getByRole("alert").waitFor();
  assert.ok((await page.getByRole("alert").textContent()).includes("<img src=x"));

  // An answer that comes late does not take the place of what was asked for after it.
  let release;
  const held = new Promise((resolve) => (release = resolve));
  await page.route(/\/api\/v1\/chain/, (route) => held.then(() => route.continue()));
  const late = page.waitForResponse(/\/api\/v1\/chain/);
  const asking = page.waitForRequest(/\/api\/v1\/chain/);
  await page.evaluate((id) => (location.hash = `#/credential/${id}`), credential);
  await asking;
  await page.evaluate(() => (location.hash = "#/destination/nowhere.example"));
  await page.getByRole("alert").filter({ hasText: "nowhere.example" }).waitFor();
  release();
  // Whoever asks the same after it is answered after it.
  await page.evaluate((url) => {
    const authorization = `Bearer ${localStorage.getItem("keytrail-session")}`;
    return fetch(url, { headers: { authorization } }).then((answer) => answer.json());
  }, (await late).url());
  assert.equal(await page.getByRole("alert").count(), 1);

  // A link that is pasted gives the same view.
  const other = await context.newPage();
  await other.goto(link);
  await other.locator("svg.graph").waitFor();
  // A refused question is told by the browser too; anything else is trouble.
  const real = trouble.filter((text) => !text.includes("404"));
  assert.deepEqual(real, []);
  assert.deepEqual(elsewhere, []);
  console.log(JSON.stringify({ loaded_ms: loaded, nodes: await other.locator("svg.graph .node").count() }));
} finally {
  await browser.close();
}
