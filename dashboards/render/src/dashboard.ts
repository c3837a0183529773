// What is read of a dashboard's JSON.
import type { FieldConfigSource } from "@grafana/data";

export interface Target {
  expr: string;
  refId: string;
  legendFormat?: string;
  instant?: boolean;
  format?: string;
}

export interface Panel {
  type: string;
  title: string;
  description?: string;
  gridPos: { x: number; y: number; w: number; h: number };
  fieldConfig: FieldConfigSource;
  options?: Record<string, unknown> | null;
  targets: Target[];
  transformations?: unknown[];
}

export interface Variable {
  type: string;
  name: string;
  label?: string;
  includeAll?: boolean;
  allValue?: string;
}

export interface Dashboard {
  title: string;
  time: { from: string; to: string };
  panels: Panel[];
  templating: { list: Variable[] };
}
