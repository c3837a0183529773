// Prometheus's HTTP API.

export interface Series {
  metric: Record<string, string>;
  /** Seconds, and the number as text. */
  values: [number, string][];
}

async function ask(question: string, parameters: Record<string, string>): Promise<any[]> {
  const response = await fetch(`prometheus/api/v1/${question}?${new URLSearchParams(parameters)}`);
  const answer = await response.json();
  if (answer.status !== "success") throw new Error(`${parameters.query}: ${answer.error}`);
  return answer.data.result;
}

/** The values at one time. */
export async function instant(query: string, time: number): Promise<Series[]> {
  const result = await ask("query", { query, time: String(time / 1000) });
  return result.map(({ metric, value }) => ({ metric, values: [value] }));
}

/** The values over a time, at multiples of the step, as Grafana asks for them. */
export function range(query: string, from: number, to: number, step: number): Promise<Series[]> {
  const aligned = (time: number) => String((Math.floor(time / step) * step) / 1000);
  return ask("query_range", { query, start: aligned(from), end: aligned(to), step: String(step / 1000) });
}
