// Grafana's grid: 24 columns, and rows of 30 pixels with 8 between them.
import type { Panel } from "./dashboard";

const COLUMNS = 24;
const ROW = 30;
const GAP = 8;

export interface Place {
  left: number;
  top: number;
  width: number;
  height: number;
}

export function place({ x, y, w, h }: Panel["gridPos"], width: number): Place {
  const column = (width - GAP * (COLUMNS - 1)) / COLUMNS;
  return {
    left: Math.round(x * (column + GAP)),
    top: y * (ROW + GAP),
    width: Math.round(w * (column + GAP) - GAP),
    height: h * (ROW + GAP) - GAP,
  };
}

export function height(panels: Panel[]): number {
  return Math.max(...panels.map(({ gridPos: { y, h } }) => y + h)) * (ROW + GAP) - GAP;
}
