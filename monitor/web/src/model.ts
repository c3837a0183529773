// Responses of the API, as far as the page shows them.

export interface Place {
  source: string;
  place: string;
}

export interface Credential {
  id: string;
  name?: string;
  class: string;
  role: string;
  lifetime: string;
  issued_at?: string;
  expires_at?: string;
  owner?: string;
  label?: string;
  sources?: Place[];
}

export interface Item extends Credential {
  first_seen: string;
  last_used: string;
  age_seconds: number;
  workloads: string[];
}

export interface Workload {
  kind: string;
  namespace?: string;
  name: string;
  pod?: string;
  container?: string;
  service_account?: string;
  image?: string;
}

export interface Process {
  pid: number;
  exe: string;
  comm: string;
  uid: number;
}

export interface Named {
  name: string;
  name_source: string;
}

export interface Destination {
  address: string;
  port: number;
  name?: string;
  name_source: string;
  transport: string;
  one_of?: number;
  disputed?: Named[];
}

export interface UseRow {
  credential: string;
  workload: Workload;
  process: Process;
  source: string;
  place: string;
  count: number;
  first_seen: string;
  last_seen: string;
}

export type Verdict = "expected" | "unproven" | "unexpected";

export interface HopRow {
  credential: string;
  workload: Workload;
  destination: Destination;
  evidence: string;
  verdict: Verdict;
  count: number;
  first_seen: string;
  last_seen: string;
  process: Process;
}

const SURE = ["held", "sole", "presented"];
const BAD = ["expected", "unproven", "unexpected"];

/**
 * Hops without those for which stronger evidence exists, with at least the same count, time and verdict: a process that
 * presents a credential on a connection also held it when it connected. The JSON file has all of them.
 */
export function strongest(hops: HopRow[]): HopRow[] {
  const key = (hop: HopRow) =>
    [hop.credential, workloadKey(hop.workload), destinationLabel(hop.destination), hop.destination.address].join("\n");
  const strong = new Map<string, HopRow>();
  for (const hop of hops) {
    const best = strong.get(key(hop));
    if (best === undefined || SURE.indexOf(hop.evidence) > SURE.indexOf(best.evidence)) strong.set(key(hop), hop);
  }
  return hops.filter((hop) => {
    const best = strong.get(key(hop)) ?? hop;
    return (
      SURE.indexOf(best.evidence) <= SURE.indexOf(hop.evidence) ||
      best.count < hop.count ||
      best.last_seen < hop.last_seen ||
      BAD.indexOf(best.verdict) < BAD.indexOf(hop.verdict)
    );
  });
}

export interface Link {
  presented?: string;
  authenticator: Destination;
  minted?: string;
  workload: Workload;
  count: number;
  first_seen: string;
  last_seen: string;
}

export interface Gap {
  kind: string;
  probe?: string;
  detail: string;
  since: string;
  until?: string;
  count?: number;
}

export interface Finding {
  id: string;
  time: string;
  rule: string;
  severity: string;
  summary: string;
  evidence?: string;
  workload: Workload;
  credential?: Credential;
  destination?: Destination;
  expected?: string[];
  count: number;
  first_seen: string;
  last_seen: string;
}

export interface Event {
  kind: "use" | "hop" | "finding" | "gap";
  time: string;
}

export function workloadKey(workload: Workload): string {
  return workload.namespace === undefined ? workload.name : `${workload.namespace}/${workload.name}`;
}

/** The agent's label of a destination in metrics and answers. */
export function destinationLabel(to: Destination): string {
  const host = to.name ?? (to.address.includes(":") ? `[${to.address}]` : to.address);
  let label = `${host}:${to.port}`;
  if (to.one_of !== undefined && to.one_of > 0) {
    label += ` (one of ${to.one_of})`;
  }
  for (const other of to.disputed ?? []) {
    label += ` (${other.name} by ${other.name_source})`;
  }
  return label;
}

export function credentialName(credential: Credential | undefined, id: string): string {
  return credential === undefined ? id : (credential.name ?? credential.class);
}

/** A time in the browser's time zone, and in UTC. */
export function when(time: string): string {
  const date = new Date(time);
  const pad = (value: number) => String(value).padStart(2, "0");
  const local = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  return `${local} (${pad(date.getUTCHours())}:${pad(date.getUTCMinutes())}Z)`;
}

export function length(seconds: number): string {
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}
