// Draws a dashboard with Grafana's own components, from what a Prometheus answers:
//
//     node render.mjs PROMETHEUS_URL DASHBOARD.json OUT.png [name=value …]
//
// The names are the dashboard's variables, and `from`, `to` (as in Grafana: now-1h) and `interval`, the scrape interval
// that the data source would be told (15s). Says what was drawn as one line of JSON; ends with an error where a query
// is refused or a panel cannot be drawn. KEYTRAIL_RENDER is the directory of the page that build.mjs made;
// KEYTRAIL_PLAYWRIGHT is one from which playwright-core is found, KEYTRAIL_CHROMIUM the browser.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { extname, join } from "node:path";

const { chromium } = createRequire(join(process.env.KEYTRAIL_PLAYWRIGHT ?? process.cwd(), "/"))("playwright-core");

const [prometheus, dashboard, image, ...values] = process.argv.slice(2);
const built = process.env.KEYTRAIL_RENDER ?? join(import.meta.dirname, "dist");
const WIDTH = 1400;
const TIME = ["from", "to", "interval"];
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2" };
// Nothing listens there: every request of the page is answered here.
const PAGE = "http://dashboard.invalid/";

const parameters = new URLSearchParams(
  values.map((value) => {
    const [name, ...rest] = value.split("=");
    return [TIME.includes(name) ? name : `var-${name}`, rest.join("=")];
  }),
);

async function answer(route) {
  const { pathname, search } = new URL(route.request().url());
  if (pathname.startsWith("/prometheus/")) {
    const response = await fetch(new URL(`.${pathname.slice("/prometheus".length)}${search}`, `${prometheus}/`));
    return route.fulfill({ status: response.status, contentType: "application/json", body: await response.text() });
  }
  const path = pathname === "/dashboard.json" ? dashboard : join(built, pathname === "/" ? "index.html" : pathname);
  return route.fulfill({ contentType: TYPES[extname(path)] ?? "application/octet-stream", body: await readFile(path) });
}

const browser = await chromium.launch({
  executablePath: process.env.KEYTRAIL_CHROMIUM,
  env: { ...process.env, LD_LIBRARY_PATH: process.env.KEYTRAIL_CHROMIUM_LIBRARIES ?? "" },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
});
try {
  const page = await browser.newPage({ viewport: { width: WIDTH, height: 1000 }, reducedMotion: "reduce" });
  const failed = new Promise((_, reject) => {
    page.on("pageerror", reject);
    page.on("crash", () => reject(new Error("the page crashed")));
    page.route("**", (route) => answer(route).catch(reject));
  });
  const drawn = async () => {
    await page.goto(`${PAGE}?${parameters}`);
    // A table only has the rows that can be seen: everything is to be.
    const { height } = await page.locator("main").boundingBox();
    await page.setViewportSize({ width: WIDTH, height: Math.ceil(height) });
    // Every panel says so; an icon that is not there yet is an empty drawing.
    await page.waitForFunction(
      () => document.querySelector("article") && !document.querySelector("article:not(:has([data-drawn], [role=gridcell])), svg:empty"),
    );
    const panels = await page.locator("article").evaluateAll((all) => all.map(({ dataset: { title, filled } }) => ({ title, filled })));
    const withoutData = panels.filter(({ filled }) => filled !== "true").map(({ title }) => title);
    await page.locator("main").screenshot({ path: image });
    return { title: await page.title(), panels: panels.length, withData: panels.length - withoutData.length, withoutData };
  };
  console.log(JSON.stringify(await Promise.race([failed, drawn()])));
} catch (error) {
  console.error([dashboard, error.message, error.cause?.message].filter(Boolean).join(": "));
  process.exitCode = 1;
} finally {
  await browser.close();
}
