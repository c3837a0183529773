// A dashboard's variables, and how they stand in a query of Prometheus.
import type { Variable } from "./dashboard";

export interface Value {
  label: string;
  shown: string;
  asked: string;
}

/** How "All" stands in an address of Grafana. */
const ALL = "$__all";

const quoted = (text: string) => text.replaceAll("\\", "\\\\").replaceAll('"', '\\"');
const literally = (text: string) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");

function valueOf({ name, type, label = name, includeAll, allValue = ".*" }: Variable, given?: string): Value {
  if (type === "datasource") return { label, shown: given ?? "Prometheus", asked: given ?? "" };
  if (includeAll && (given === undefined || given === ALL)) return { label, shown: "All", asked: allValue };
  if (given === undefined) throw new Error(`the dashboard needs a value: ${name}=…`);
  // Where "All" can be chosen, Grafana takes the variable as a part of a regular expression.
  return { label, shown: given, asked: quoted(includeAll ? literally(given) : given) };
}

/** Values by name, of those that were given and of those that can do without. */
export function valuesOf(variables: Variable[], given: URLSearchParams): Map<string, Value> {
  const names = variables.map(({ name }) => `var-${name}`);
  const unknown = [...given.keys()].find((name) => name.startsWith("var-") && !names.includes(name));
  if (unknown !== undefined) throw new Error(`the dashboard has no variable ${unknown.slice("var-".length)}`);
  return new Map(variables.map((one) => [one.name, valueOf(one, given.get(`var-${one.name}`) ?? undefined)]));
}

/** Puts values in the place of `$name` and `${name}`; what has no value stays, as in Grafana. */
export function interpolate(text: string, values: ReadonlyMap<string, string>): string {
  return text.replace(/\$(?:(\w+)|\{(\w+)\})/g, (all, bare?: string, braced?: string) => values.get(bare ?? braced ?? "") ?? all);
}
