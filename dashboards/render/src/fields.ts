// Field configuration: the panel's own over what Grafana takes where a dashboard says nothing.
import {
  applyFieldOverrides,
  FieldColorModeId,
  FieldType,
  ThresholdsMode,
  type DataFrame,
  type FieldConfig,
  type GrafanaTheme2,
} from "@grafana/data";
import { GraphDrawStyle, LineInterpolation, TableCellDisplayMode, VisibilityMode } from "@grafana/schema";
import type { Panel } from "./dashboard";

const GRAPH: FieldConfig = {
  color: { mode: FieldColorModeId.PaletteClassic },
  custom: {
    drawStyle: GraphDrawStyle.Line,
    lineInterpolation: LineInterpolation.Linear,
    lineWidth: 1,
    fillOpacity: 0,
    pointSize: 5,
    showPoints: VisibilityMode.Auto,
    spanNulls: false,
  },
};

const DEFAULTS: Record<string, FieldConfig> = {
  timeseries: GRAPH,
  heatmap: GRAPH,
  stat: { color: { mode: FieldColorModeId.Thresholds } },
  table: { custom: { align: "auto", cellOptions: { type: TableCellDisplayMode.Auto }, inspect: false } },
};

/** Grafana's, for every kind of panel. */
const THRESHOLDS = {
  mode: ThresholdsMode.Absolute,
  steps: [
    { value: -Infinity, color: "green" },
    { value: 80, color: "red" },
  ],
};

/** In JSON, the threshold that everything is above is null. */
function thresholds({ thresholds: given }: FieldConfig): FieldConfig["thresholds"] {
  return given && { ...given, steps: given.steps.map((step) => ({ ...step, value: step.value ?? -Infinity })) };
}

export function configured(panel: Panel, frames: DataFrame[], theme: GrafanaTheme2): DataFrame[] {
  const usual = DEFAULTS[panel.type];
  const own = panel.fieldConfig.defaults;
  if (usual === undefined) throw new Error(`${panel.title}: nothing here draws a panel of type ${panel.type}`);
  if (panel.fieldConfig.overrides.length > 0 || panel.transformations?.length) {
    throw new Error(`${panel.title}: overrides and transformations are not known here`);
  }
  const config = {
    ...usual,
    ...own,
    thresholds: thresholds(own) ?? THRESHOLDS,
    custom: { ...usual.custom, ...own.custom },
  };
  const data = frames.map((frame) => ({
    ...frame,
    fields: frame.fields.map((field) =>
      field.type === FieldType.time ? field : { ...field, config: { ...config, ...field.config } },
    ),
  }));
  return applyFieldOverrides({
    data,
    // It is in the fields already: the registry that would put it there is no part of Grafana's packages.
    fieldConfig: { defaults: {}, overrides: [] },
    replaceVariables: (text) => text,
    theme,
    timeZone: "browser",
  });
}
