// One panel in its frame. What it holds has `data-drawn` once it is drawn; a table has its cells then.
import type { DataFrame, TimeRange } from "@grafana/data";
import { ErrorBoundary, PanelChrome } from "@grafana/ui";
import type { ComponentType } from "react";
import type { Panel } from "./dashboard";
import { holdsNumber } from "./frames";
import { Graph } from "./Graph";
import type { Place } from "./grid";
import { Rows } from "./Rows";
import { Stat } from "./Stat";

export interface Drawing {
  panel: Panel;
  frames: DataFrame[];
  time: TimeRange;
  width: number;
  height: number;
}

const KINDS: Record<string, ComponentType<Drawing>> = { stat: Stat, timeseries: Graph, table: Rows, heatmap: Graph };

const NOTES: Record<string, string> = {
  heatmap: "A heatmap in Grafana; drawn here with one line for each bucket.",
};

const NONE = { display: "flex", alignItems: "center", justifyContent: "center" };

export function Drawn({ panel, frames, time, at }: { panel: Panel; frames: DataFrame[]; time: TimeRange; at: Place }) {
  const Kind = holdsNumber(frames) ? KINDS[panel.type] : undefined;
  return (
    <article style={{ position: "absolute", ...at }} data-title={panel.title} data-filled={Kind !== undefined}>
      <PanelChrome title={panel.title} description={panel.description} subtitle={NOTES[panel.type]} width={at.width} height={at.height}>
        {(width, height) =>
          Kind ? (
            <ErrorBoundary onError={({ message }) => reportError(new Error(`${panel.title}: ${message}`))}>
              {({ error }) => !error && <Kind {...{ panel, frames, time, width, height }} />}
            </ErrorBoundary>
          ) : (
            <div data-drawn style={{ ...NONE, width, height }}>
              No data
            </div>
          )
        }
      </PanelChrome>
    </article>
  );
}
