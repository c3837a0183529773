import { TimeSeries } from "@grafana/ui";
import { LegendDisplayMode } from "@grafana/schema";
import type { Drawing } from "./Drawn";

const LEGEND = { showLegend: true, displayMode: LegendDisplayMode.List, placement: "bottom", calcs: [] } as const;

export function Graph({ panel, frames, time, width, height }: Drawing) {
  return (
    <TimeSeries
      frames={frames}
      timeRange={time}
      timeZone="browser"
      legend={{ ...LEGEND, ...(panel.options?.legend as object | undefined), calcs: [] }}
      width={width}
      height={height}
    >
      {(builder) => {
        builder.addHook("draw", (plot) => (plot.root.dataset.drawn = ""));
        return null;
      }}
    </TimeSeries>
  );
}
