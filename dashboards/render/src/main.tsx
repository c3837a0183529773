// Draws the dashboard that lies beside this page, with the time and the variables of the address as Grafana writes
// them there: ?from=now-1h&to=now&var-name=value. What Prometheus answers is expected under prometheus/.
import { createTheme, rangeUtil, ThemeContext } from "@grafana/data";
import { initPluginTranslations } from "@grafana/i18n";
import { GlobalStyles, PortalContainer } from "@grafana/ui";
import { createRoot } from "react-dom/client";
import { Bar } from "./Bar";
import type { Dashboard } from "./dashboard";
import { Drawn } from "./Drawn";
import { configured } from "./fields";
import { height, place } from "./grid";
import { load } from "./load";
import { valuesOf } from "./variables";

const MARGIN = 16;

const given = new URLSearchParams(location.search);
const dashboard: Dashboard = await (await fetch("dashboard.json")).json();
const theme = createTheme({ colors: { mode: "light" } });
const time = rangeUtil.convertRawToRange({
  from: given.get("from") ?? dashboard.time.from,
  to: given.get("to") ?? dashboard.time.to,
});
const values = valuesOf(dashboard.templating.list, given);
const circumstances = {
  time,
  scrape: given.get("interval") ?? "15s",
  values: new Map([...values].map(([name, { asked }]) => [name, asked])),
};
const panels = await Promise.all(
  dashboard.panels.map(async (panel) => {
    const at = place(panel.gridPos, document.documentElement.clientWidth - 2 * MARGIN);
    const frames = await load(panel, at.width, circumstances);
    return { panel, at, frames: configured(panel, frames, theme) };
  }),
);
await initPluginTranslations("keytrail");
// A graph is drawn on a canvas, which does not wait for its typeface.
const faces = ["Regular", "Medium"].map((name, index) =>
  new FontFace("Inter", `url(public/fonts/inter/Inter-${name}.woff2)`, { weight: String(400 + 100 * index) }).load(),
);
for (const face of await Promise.all(faces)) document.fonts.add(face);
document.title = dashboard.title;
createRoot(document.body.appendChild(document.createElement("main"))).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <div style={{ padding: MARGIN, background: theme.colors.background.canvas }}>
      <Bar title={dashboard.title} values={[...values.values()]} time={time} />
      <div style={{ position: "relative", marginTop: MARGIN, height: height(dashboard.panels) }}>
        {panels.map((one) => (
          <Drawn key={`${one.at.left}/${one.at.top}`} {...one} time={time} />
        ))}
      </div>
    </div>
    <PortalContainer />
  </ThemeContext.Provider>,
);
