// A trail as a graph: workload → credential → authenticator → destination. Laid out by dagre, drawn by d3.

import dagre from "@dagrejs/dagre";
import { type Selection, select } from "d3-selection";
import { curveBasis, line } from "d3-shape";
import { zoom } from "d3-zoom";
import { type Route, hashOf } from "./api";
import {
  type Credential,
  type HopRow,
  type Link,
  type UseRow,
  type Verdict,
  credentialName,
  destinationLabel,
  workloadKey,
} from "./model";

type Kind = "workload" | "credential" | "authenticator" | "destination";

interface Node {
  id: string;
  kind: Kind;
  lines: string[];
  route?: Route["kind"];
  name: string;
}

interface Edge {
  from: string;
  to: string;
  label: string;
  verdict?: Verdict;
  proven: boolean;
  count: number;
}

/** More edges are unreadable: the worst are shown, and the number of the others. */
const MOST = 120;
const ORDER: Record<Verdict, number> = { unexpected: 2, unproven: 1, expected: 0 };

export class Trail {
  private nodes = new Map<string, Node>();
  private edges = new Map<string, Edge>();

  constructor(private credentials: Map<string, Credential>) {}

  private node(kind: Kind, name: string, lines: string[], route?: Route["kind"]): string {
    const id = `${kind} ${name}`;
    if (!this.nodes.has(id)) this.nodes.set(id, { id, kind, lines, name, route });
    return id;
  }

  private edge(from: string, to: string, label: string, count: number, verdict?: Verdict, proven = true): void {
    const id = `${from}\n${to}\n${label}\n${verdict}`;
    const known = this.edges.get(id);
    if (known === undefined) {
      this.edges.set(id, { from, to, label, verdict, proven, count });
    } else {
      known.count += count;
    }
  }

  private workload(key: string): string {
    return this.node("workload", key, [short(key)], "workload");
  }

  private credential(id: string): string {
    const known = this.credentials.get(id);
    return this.node("credential", id, [short(credentialName(known, id)), id], "credential");
  }

  private destination(label: string): string {
    return this.node("destination", label, [short(label)], "destination");
  }

  uses(rows: UseRow[]): this {
    for (const row of rows) {
      this.edge(this.workload(workloadKey(row.workload)), this.credential(row.credential), row.source, row.count);
    }
    return this;
  }

  hops(rows: HopRow[]): this {
    const worst = [...rows].sort((a, b) => ORDER[b.verdict] - ORDER[a.verdict]);
    const used = new Set([...this.edges.values()].map((edge) => `${edge.from}\n${edge.to}`));
    for (const row of worst) {
      const credential = this.credential(row.credential);
      const workload = this.workload(workloadKey(row.workload));
      if (!used.has(`${workload}\n${credential}`)) this.edge(workload, credential, "holds", row.count);
      const label = `${row.verdict}, ${row.evidence}`;
      const to = this.destination(destinationLabel(row.destination));
      this.edge(credential, to, label, row.count, row.verdict, row.evidence === "presented");
    }
    return this;
  }

  links(rows: Link[]): this {
    for (const row of rows) {
      const label = destinationLabel(row.authenticator);
      const at = this.node("authenticator", label, ["authenticator", short(label)], "destination");
      if (row.presented === undefined) {
        this.edge(this.workload(workloadKey(row.workload)), at, "asks", row.count);
      } else {
        this.edge(this.credential(row.presented), at, "proves", row.count);
      }
      if (row.minted !== undefined) this.edge(at, this.credential(row.minted), "mints", row.count);
    }
    return this;
  }

  /** Draws it; `route` is the current view. */
  draw(route: Route): { figure: SVGSVGElement; left: number } {
    const rank = (edge: Edge) => (edge.verdict === undefined ? 1.5 : ORDER[edge.verdict]);
    const all = [...this.edges.values()].sort((a, b) => rank(b) - rank(a) || b.count - a.count);
    const shown = all.slice(0, MOST);
    const layout = new dagre.graphlib.Graph({ multigraph: true });
    layout.setGraph({ rankdir: "LR", nodesep: 18, ranksep: 110, marginx: 16, marginy: 16 });
    layout.setDefaultEdgeLabel(() => ({}));
    for (const edge of shown) {
      for (const id of [edge.from, edge.to]) {
        const node = this.nodes.get(id);
        if (node === undefined || layout.hasNode(id)) continue;
        const longest = Math.max(...node.lines.map((text) => text.length));
        layout.setNode(id, { width: 28 + 7 * longest, height: 16 + 16 * node.lines.length });
      }
    }
    shown.forEach((edge, index) => {
      const width = 7 * (edge.label.length + 4);
      layout.setEdge(edge.from, edge.to, { width, height: 14, labelpos: "c" }, String(index));
    });
    dagre.layout(layout);
    const { width = 400, height = 120 } = layout.graph();
    const svg = select(document.createElementNS("http://www.w3.org/2000/svg", "svg"))
      .attr("class", "graph")
      .attr("role", "group")
      .attr("aria-label", "The trail as a graph; the tables below say the same")
      .attr("viewBox", `0 0 ${Math.max(width, 640)} ${height}`)
      .attr("preserveAspectRatio", "xMidYMid meet");
    // As a property, because the page's policy rejects style attributes.
    svg.node()!.style.height = `${Math.min(Math.max(height, 140), 620)}px`;
    const stage = svg.append("g");
    svg.call(
      zoom<SVGSVGElement, unknown>()
        .scaleExtent([0.2, 4])
        .filter((event: MouseEvent | WheelEvent) => event.type !== "wheel" || event.ctrlKey)
        .on("zoom", (event) => stage.attr("transform", event.transform)),
    );
    const curve = line<{ x: number; y: number }>()
      .x((point) => point.x)
      .y((point) => point.y)
      .curve(curveBasis);
    shown.forEach((edge, index) => {
      const placed = layout.edge({ v: edge.from, w: edge.to, name: String(index) });
      const group = stage.append("g").attr("class", `edge ${edge.verdict ?? ""}`);
      group.append("path").attr("class", "line").attr("d", curve(placed.points));
      const end = placed.points.at(-1)!;
      const before = placed.points.at(-2) ?? end;
      const angle = (Math.atan2(end.y - before.y, end.x - before.x) * 180) / Math.PI;
      group
        .append("path")
        .attr("class", edge.proven ? "head" : "head open")
        .attr("d", "M0,0 L-9,-4.5 L-9,4.5 Z")
        .attr("transform", `translate(${end.x},${end.y}) rotate(${angle})`);
      group
        .append("text")
        .attr("x", placed.x ?? 0)
        .attr("y", (placed.y ?? 0) - 4)
        .attr("text-anchor", "middle")
        .text(`${edge.label} × ${edge.count}`);
    });
    for (const id of layout.nodes()) {
      const node = this.nodes.get(id);
      const place = layout.node(id);
      if (node === undefined || place === undefined) continue;
      const here = node.route === route.kind && (node.name === route.name || node.lines.includes(route.name));
      const anchor = stage.append<SVGAElement>("svg:a").attr("class", `node ${node.kind}${here ? " here" : ""}`);
      if (node.route !== undefined) {
        anchor.attr("href", hashOf({ ...route, kind: node.route, name: node.name }));
      }
      anchor.attr("aria-label", `${node.kind} ${node.name}`).append("title").text(`${node.kind} ${node.name}`);
      shape(anchor, node.kind, place);
      node.lines.forEach((text, number) => {
        anchor
          .append("text")
          .attr("x", place.x)
          .attr("y", place.y + 16 * (number - (node.lines.length - 1) / 2) + 4)
          .attr("text-anchor", "middle")
          .text(text);
      });
    }
    return { figure: svg.node()!, left: all.length - shown.length };
  }
}

function shape(
  at: Selection<SVGAElement, unknown, null, undefined>,
  kind: Kind,
  { x, y, width, height }: { x: number; y: number; width: number; height: number },
): void {
  const [left, top] = [x - width / 2, y - height / 2];
  switch (kind) {
    case "workload":
      at.append("rect").attr("x", left).attr("y", top).attr("width", width).attr("height", height).attr("rx", 4);
      break;
    case "credential":
      at.append("ellipse").attr("cx", x).attr("cy", y).attr("rx", width / 2).attr("ry", height / 2);
      break;
    default: {
      const cut = kind === "authenticator" ? height / 3 : height / 2;
      const points = [
        [left + cut, top],
        [left + width - cut, top],
        [left + width, y],
        [left + width - cut, top + height],
        [left + cut, top + height],
        [left, y],
      ];
      at.append("polygon").attr("points", points.map((point) => point.join(",")).join(" "));
    }
  }
}

/** The end of a long name is more informative than its beginning. */
function short(text: string): string {
  return text.length <= 44 ? text : `…${text.slice(-43)}`;
}
