// The timeline: uses and hops as marks, gaps as bands.

import { extent } from "d3-array";
import { axisBottom } from "d3-axis";
import { scalePoint, scaleTime } from "d3-scale";
import { select } from "d3-selection";
import { timeFormat } from "d3-time-format";
import { type Gap, type HopRow, type UseRow, destinationLabel, when } from "./model";

const WIDTH = 1200;
const LEFT = 250;
const ROW = 22;
/** Maximum lines of the chart; the tables have all. */
const MOST = 24;

interface Mark {
  line: string;
  first: Date;
  last: Date;
  verdict: string;
  title: string;
}

/** Empty if there are no events. */
export function timeline(uses: UseRow[], hops: HopRow[], gaps: Gap[]): SVGSVGElement | undefined {
  const marks: Mark[] = [];
  for (const row of hops) {
    const line = `→ ${destinationLabel(row.destination)}`;
    const title = `${line}, ${row.verdict}, ${row.evidence}, × ${row.count}, ${when(row.first_seen)} to ${when(row.last_seen)}`;
    marks.push({ line, first: new Date(row.first_seen), last: new Date(row.last_seen), verdict: row.verdict, title });
  }
  for (const row of uses) {
    const line = `${row.source} ${row.place}`;
    const title = `${line}, × ${row.count}, ${when(row.first_seen)} to ${when(row.last_seen)}`;
    marks.push({ line, first: new Date(row.first_seen), last: new Date(row.last_seen), verdict: "", title });
  }
  const lines = [...new Set(marks.map((mark) => mark.line))].slice(0, MOST);
  const times = marks.flatMap((mark) => [mark.first, mark.last]);
  const [from, to] = extent(times);
  if (from === undefined || to === undefined) return undefined;
  const room = Math.max((to.getTime() - from.getTime()) * 0.04, 30_000);
  const x = scaleTime()
    .domain([from.getTime() - room, to.getTime() + room])
    .range([LEFT, WIDTH - 20]);
  const y = scalePoint()
    .domain(lines)
    .range([24, 24 + ROW * (lines.length - 1)]);
  const height = 24 + ROW * lines.length + 24;
  const svg = select(document.createElementNS("http://www.w3.org/2000/svg", "svg"))
    .attr("class", "timeline")
    .attr("role", "img")
    .attr("aria-label", "When it happened; the tables below say the same")
    .attr("viewBox", `0 0 ${WIDTH} ${height}`);
  const inside = (time: Date) => Math.min(Math.max(x(time), LEFT), WIDTH - 20);
  for (const gap of gaps) {
    const start = inside(new Date(gap.since));
    const end = inside(gap.until === undefined ? new Date() : new Date(gap.until));
    const whole = end - start >= WIDTH - 20 - LEFT;
    if (end <= start || (whole && gap.kind === "not-covered")) continue;
    svg
      .append("rect")
      .attr("class", "gap")
      .attr("x", start)
      .attr("y", 4)
      .attr("width", Math.max(end - start, 3))
      .attr("height", height - 28)
      .append("title")
      .text(`not seen: ${gap.kind}, ${gap.detail}, ${when(gap.since)} to ${gap.until === undefined ? "now" : when(gap.until)}`);
  }
  for (const name of lines) {
    svg
      .append("text")
      .attr("x", LEFT - 12)
      .attr("y", (y(name) ?? 0) + 4)
      .attr("text-anchor", "end")
      .text(name.length <= 36 ? name : `${name.slice(0, 17)}…${name.slice(-18)}`);
  }
  for (const mark of marks) {
    const at = y(mark.line);
    if (at === undefined) continue;
    svg
      .append("rect")
      .attr("class", `mark ${mark.verdict}`)
      .attr("x", x(mark.first) - 4)
      .attr("y", at - 5)
      .attr("width", Math.max(x(mark.last) - x(mark.first), 0) + 8)
      .attr("height", 10)
      .attr("rx", mark.verdict === "unexpected" ? 0 : 5)
      .append("title")
      .text(mark.title);
  }
  const axis = axisBottom<Date>(x as never).ticks(8).tickSizeOuter(0);
  const span = to.getTime() - from.getTime();
  if (span > 3 * 86_400_000) axis.tickFormat(timeFormat("%m-%d") as never);
  svg
    .append("g")
    .attr("transform", `translate(0,${height - 22})`)
    .call(axis as never);
  return svg.node()!;
}
