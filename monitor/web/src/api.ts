// Queries to the agent that serves this page.

/** What the page shows, encoded after the `#`. */
export interface Route {
  kind: "overview" | "credential" | "workload" | "destination";
  name: string;
  since: string;
  until: string;
}

export function routeOf(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const parameters = new URLSearchParams(query);
  const [kind = "", ...rest] = path.split("/");
  const name = decoded(rest.join("/"));
  const known = kind === "credential" || kind === "workload" || kind === "destination";
  return {
    kind: known && name !== "" ? kind : "overview",
    name,
    since: parameters.get("since") ?? "",
    until: parameters.get("until") ?? "",
  };
}

/** Unchanged if it cannot be decoded: links are also typed by hand. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function hashOf(route: Route): string {
  const parameters = new URLSearchParams();
  if (route.since !== "") parameters.set("since", route.since);
  if (route.until !== "") parameters.set("until", route.until);
  const query = parameters.size > 0 ? `?${parameters}` : "";
  const path = route.kind === "overview" ? "" : `${route.kind}/${encodeURIComponent(route.name)}`;
  return `#/${path}${query}`;
}

export class Refused extends Error {
  constructor(
    said: string,
    readonly status: number,
  ) {
    super(said);
  }
}

/** The agent requires its token. */
export class NeedsToken extends Error {}

/** Stored only while the tab is open. */
const TOKEN = "keytrail-token";

export function bring(token: string): void {
  sessionStorage.setItem(TOKEN, token);
}

/** A response of the API; errors are thrown with its message. */
export async function ask<T>(question: string, parameters: Record<string, string>): Promise<T> {
  const given = Object.entries(parameters).filter(([, value]) => value !== "");
  const query = new URLSearchParams(given);
  const token = sessionStorage.getItem(TOKEN);
  const headers: Record<string, string> = { accept: "application/json" };
  if (token !== null) headers["authorization"] = `Bearer ${token}`;
  const response = await fetch(`api/v1/${question}?${query}`, { headers });
  if (response.status === 401) throw new NeedsToken("This agent asks for its token.");
  if (!response.ok) {
    const body = (await response.json().catch(() => ({}))) as { error?: string };
    throw new Refused(body.error ?? `the agent answered ${response.status}`, response.status);
  }
  return (await response.json()) as T;
}
