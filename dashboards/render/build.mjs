// Bundles the page into the directory that is given, with the icons and the typeface where Grafana's components
// look for them.
import { build } from "esbuild";
import { copyFile, cp, mkdir } from "node:fs/promises";

const out = process.argv[2] ?? "dist";
const fonts = `${out}/public/fonts/inter`;
await mkdir(fonts, { recursive: true });
await build({
  entryPoints: ["src/main.tsx"],
  bundle: true,
  minify: true,
  jsx: "automatic",
  // The code editor and the map are only loaded where they are used: not here.
  external: ["*/ReactMonacoEditor.mjs", "*/OpenLayersProvider.mjs"],
  define: { "process.env.NODE_ENV": '"production"' },
  legalComments: "linked",
  target: "es2022",
  format: "esm",
  outfile: `${out}/app.js`,
});
await copyFile("index.html", `${out}/index.html`);
await cp("node_modules/@grafana/ui/dist/public/img/icons", `${out}/public/build/img/icons`, { recursive: true });
for (const weight of ["Regular", "Medium"]) {
  await copyFile(`node_modules/inter-ui/web/Inter-${weight}.woff2`, `${fonts}/Inter-${weight}.woff2`);
}
