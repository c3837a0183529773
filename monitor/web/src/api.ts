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

/** The secret of a session, for every tab of this origin. It ends after hours, or with the agent. */
const SESSION = "keytrail-session";

async function exchange(request: RequestInit, refused: string): Promise<void> {
  const response = await fetch("session", { method: "POST", ...request });
  if (!response.ok) throw new NeedsToken(refused);
  const { session } = (await response.json()) as { session: string };
  localStorage.setItem(SESSION, session);
}

/** Exchanges the token for a session; the token itself is not stored. */
export async function signIn(token: string): Promise<void> {
  await exchange({ headers: { authorization: `Bearer ${token}` } }, "This is not the agent's token.");
}

/** What a link of `keytrail page` carries after the `#`. */
const CODE = "#code=";

/** Whether the page was opened by such a link. */
export const hasCode = () => location.hash.startsWith(CODE);

/**
 * Exchanges the code of a link for a session, and takes it out of the address, so that a bookmark or a copied link does
 * not hold it. The code works once.
 */
export async function enter(): Promise<void> {
  if (!hasCode()) return;
  const code = location.hash.slice(CODE.length);
  history.replaceState(null, "", hashOf(routeOf("")));
  await exchange({ body: code }, "This link was used, or is older than ten minutes: `keytrail page` prints another. Or enter the agent's token:");
}

/** A response of the API; errors are thrown with its message. */
export async function ask<T>(question: string, parameters: Record<string, string>): Promise<T> {
  const given = Object.entries(parameters).filter(([, value]) => value !== "");
  const query = new URLSearchParams(given);
  const session = localStorage.getItem(SESSION);
  const headers: Record<string, string> = { accept: "application/json" };
  if (session !== null) headers["authorization"] = `Bearer ${session}`;
  const response = await fetch(`api/v1/${question}?${query}`, { headers });
  if (response.status === 401) throw new NeedsToken("Open the link that `keytrail page` prints on the agent's host, or enter the agent's token:");
  if (!response.ok) {
    const body = (await response.json().catch(() => ({}))) as { error?: string };
    throw new Refused(body.error ?? `the agent answered ${response.status}`, response.status);
  }
  return (await response.json()) as T;
}
