// Data frames, as Grafana's data source makes them of Prometheus's answers.
import { createDataFrame, FieldType, type DataFrame, type PartialDataFrame } from "@grafana/data";
import type { Target } from "./dashboard";
import type { Series } from "./prometheus";

const TIME = "Time";
const VALUE = "Value";

/** What is not finite is not drawn. */
function finite(text: string): number | null {
  const number = Number(text);
  return Number.isFinite(number) ? number : null;
}

function selector({ __name__: name = "", ...labels }: Series["metric"]): string {
  const pairs = Object.entries(labels).map(([label, value]) => `${label}=${JSON.stringify(value)}`);
  return pairs.length > 0 || name === "" ? `${name}{${pairs.sort().join(", ")}}` : name;
}

function legend({ legendFormat, expr }: Target, metric: Series["metric"]): string {
  const name = legendFormat
    ? legendFormat.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label: string) => metric[label] ?? "")
    : selector(metric);
  return name === "{}" ? expr : name;
}

/** One frame a series. */
export function lines(target: Target, series: Series[], step: number): DataFrame[] {
  return series.map(({ metric, values }) =>
    createDataFrame({
      refId: target.refId,
      fields: [
        // By the step, the gaps are found over which no line is drawn.
        { name: TIME, type: FieldType.time, config: { interval: step }, values: values.map(([time]) => time * 1000) },
        {
          name: VALUE,
          type: FieldType.number,
          labels: metric,
          config: { displayNameFromDS: legend(target, metric) },
          values: values.map(([, value]) => finite(value)),
        },
      ],
    }),
  );
}

const bound = ({ metric: { le = "" } }: Series) => Number(le.replace("Inf", "Infinity"));

/** Prometheus's buckets have all that is below their bound in them: these have what is between two bounds. */
export function buckets(series: Series[]): Series[] {
  const sorted = series.toSorted((a, b) => bound(a) - bound(b));
  return sorted.map(({ metric, values }, index) => {
    const below = new Map(sorted[index - 1]?.values);
    return { metric, values: values.map(([time, value]) => [time, String(Number(value) - Number(below.get(time) ?? 0))]) };
  });
}

/** One frame of all series: a column for each label. */
export function table(target: Target, series: Series[]): DataFrame[] {
  const labels = [...new Set(series.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const last = series.map(({ values }) => values.at(-1));
  const fields: PartialDataFrame["fields"] = [
    { name: TIME, type: FieldType.time, values: last.map((point) => (point ? point[0] * 1000 : null)) },
    ...labels.map((label) => ({
      name: label,
      type: FieldType.string,
      values: series.map(({ metric }) => metric[label] ?? ""),
    })),
    { name: VALUE, type: FieldType.number, values: last.map((point) => (point ? finite(point[1]) : null)) },
  ];
  return series.length > 0 ? [createDataFrame({ refId: target.refId, fields })] : [];
}

export function holdsNumber(frames: DataFrame[]): boolean {
  return frames.some(({ fields }) =>
    fields.some(({ type, values }) => type === FieldType.number && values.some((value) => value !== null)),
  );
}
