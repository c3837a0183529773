// Bundles the page into the directory that is given: three files, and nothing that is fetched from elsewhere.
import { build } from "esbuild";
import { copyFile, mkdir } from "node:fs/promises";

const out = process.argv[2] ?? "dist";
await mkdir(out, { recursive: true });
await build({
  entryPoints: ["src/main.ts"],
  bundle: true,
  minify: true,
  legalComments: "linked",
  target: "es2022",
  format: "esm",
  outfile: `${out}/app.js`,
});
await copyFile("index.html", `${out}/index.html`);
await copyFile("style.css", `${out}/style.css`);
