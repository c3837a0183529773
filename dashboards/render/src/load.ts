// Asks what a panel asks.
import { rangeUtil, type DataFrame, type TimeRange } from "@grafana/data";
import type { Panel } from "./dashboard";
import { buckets, lines, table } from "./frames";
import { instant, range } from "./prometheus";
import { interpolate } from "./variables";

export interface Circumstances {
  time: TimeRange;
  /** The scrape interval that the data source is told. */
  scrape: string;
  values: ReadonlyMap<string, string>;
}

export async function load(panel: Panel, width: number, { time, scrape, values }: Circumstances): Promise<DataFrame[]> {
  const [from, to] = [time.from.valueOf(), time.to.valueOf()];
  const every = rangeUtil.intervalToMs(scrape);
  // A point a pixel, and no more than there are scrapes.
  const step = rangeUtil.calculateInterval(time, width, scrape).intervalMs;
  // Long enough that four scrapes are in it, and that nothing between two steps is left out.
  const rate = Math.max(step + every, 4 * every);
  const known = new Map([...values, ["__interval", `${step}ms`], ["__rate_interval", `${rate}ms`]]);
  const answers = panel.targets.map(async (target) => {
    const query = interpolate(target.expr, known);
    if (target.instant) return table(target, await instant(query, to));
    const series = await range(query, from, to, step);
    return lines(target, target.format === "heatmap" ? buckets(series) : series, step);
  });
  try {
    return (await Promise.all(answers)).flat();
  } catch (error) {
    throw new Error(`${panel.title}: ${error instanceof Error ? error.message : error}`, { cause: error });
  }
}
