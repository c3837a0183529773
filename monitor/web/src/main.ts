// The responder's page: search, a trail as a graph, its timeline with gaps, and findings. Each view is a link and can be
// saved as a file.

import { NeedsToken, type Route, Refused, ask, enter, hasCode, hashOf, routeOf, signIn } from "./api";
import { Trail } from "./graph";
import {
  type Credential,
  type Finding,
  type Gap,
  type HopRow,
  type Item,
  type Link,
  type UseRow,
  credentialName,
  destinationLabel,
  length,
  strongest,
  when,
  workloadKey,
} from "./model";
import { type Cell, csv, save, svgText } from "./save";
import { timeline } from "./timeline";

/** Maximum rows of a table, and of a searched list. */
const ROWS = 500;
/** Maximum uses and hops of a view and its files: more are unreadable, and would cost the agent memory. */
const MOST = "2000";

const main = document.querySelector<HTMLElement>("#answer")!;
const form = document.querySelector<HTMLFormElement>("#search")!;
const query = document.querySelector<HTMLInputElement>("#query")!;
const since = document.querySelector<HTMLInputElement>("#since")!;
const until = document.querySelector<HTMLInputElement>("#until")!;
const known = document.querySelector<HTMLDataListElement>("#known")!;

/** An element with text and children. Text never becomes markup. */
function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function link(route: Route, text: string): HTMLElement {
  return element("a", { href: hashOf(route) }, text);
}

type Shown = { cell: Cell; node?: Node; class?: string };

function table(head: string[], rows: Shown[][], label: string): HTMLElement {
  const body = rows.slice(0, ROWS).map((row) =>
    element(
      "tr",
      {},
      ...row.map((shown) => element("td", shown.class === undefined ? {} : { class: shown.class }, shown.node ?? String(shown.cell))),
    ),
  );
  const made = element(
    "table",
    { "aria-label": label },
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...body),
  );
  const parts: (Node | string)[] = [made];
  if (rows.length > ROWS) parts.push(element("p", {}, `${rows.length - ROWS} more are in the files.`));
  return element("div", { class: "scroll" }, ...parts);
}

const word = (text: string, kind: string): Shown => ({
  cell: text,
  node: element("span", { class: `${kind} ${text}` }, text),
  class: "word",
});
const time = (text: string): Shown => ({ cell: text, node: element("time", { datetime: text }, when(text)), class: "time" });
const number = (value: number): Shown => ({ cell: value, class: "number" });

interface Table {
  title: string;
  head: string[];
  rows: Shown[][];
}

function hopTable(route: Route, hops: HopRow[]): Table {
  return {
    title: "Where it went",
    head: ["Verdict", "Evidence", "Destination", "Address", "Workload", "Credential", "Process", "Count", "First", "Last"],
    rows: hops.map((row) => {
      const to = destinationLabel(row.destination);
      const key = workloadKey(row.workload);
      return [
        word(row.verdict, "verdict"),
        { cell: row.evidence, class: "word" },
        { cell: to, node: link({ ...route, kind: "destination", name: to }, to) },
        { cell: row.destination.address },
        { cell: key, node: link({ ...route, kind: "workload", name: key }, key) },
        { cell: row.credential, node: link({ ...route, kind: "credential", name: row.credential }, row.credential), class: "word" },
        { cell: `${row.process.exe}[${row.process.pid}]` },
        number(row.count),
        time(row.first_seen),
        time(row.last_seen),
      ];
    }),
  };
}

function useTable(route: Route, uses: UseRow[]): Table {
  return {
    title: "Who used it",
    head: ["Workload", "Process", "User", "Source", "Place", "Credential", "Count", "First", "Last"],
    rows: uses.map((row) => {
      const key = workloadKey(row.workload);
      return [
        { cell: key, node: link({ ...route, kind: "workload", name: key }, key) },
        { cell: `${row.process.exe}[${row.process.pid}]` },
        number(row.process.uid),
        { cell: row.source, class: "word" },
        { cell: row.place },
        { cell: row.credential, node: link({ ...route, kind: "credential", name: row.credential }, row.credential), class: "word" },
        number(row.count),
        time(row.first_seen),
        time(row.last_seen),
      ];
    }),
  };
}

function findingTable(route: Route, findings: Finding[]): Table {
  return {
    title: "Findings",
    head: ["Severity", "Rule", "What", "Graph", "Count", "First", "Last"],
    rows: findings.map((finding) => {
      const about: Route =
        finding.credential === undefined
          ? { ...route, kind: "workload", name: workloadKey(finding.workload) }
          : { ...route, kind: "credential", name: finding.credential.id };
      return [
        word(finding.severity, "severity"),
        { cell: finding.rule },
        { cell: finding.summary },
        { cell: about.name, node: link(about, about.name) },
        number(finding.count),
        time(finding.first_seen),
        time(finding.last_seen),
      ];
    }),
  };
}

/** What was not observed: the gaps of the requested time, and permanent gaps in one line. */
function gapBox(gaps: Gap[]): HTMLElement[] {
  if (gaps.length === 0) return [];
  const own = gaps.filter((gap) => gap.kind !== "not-covered");
  const standing = gaps.length - own.length;
  const lines = own.map((gap) => {
    const end = gap.until === undefined ? "now" : when(gap.until);
    const count = gap.count === undefined ? "" : ` (${gap.count} events)`;
    return element("li", {}, `${when(gap.since)} – ${end}: ${gap.kind}${count}: ${gap.detail}`);
  });
  if (standing > 0) lines.push(element("li", {}, `${standing} kinds of use and traffic, which keytrail doctor lists`));
  const summary = `Not seen: ${own.length} gaps in this time, ${standing} kinds at any time`;
  return [element("details", { class: "gaps" }, element("summary", {}, summary), element("ul", {}, ...lines))];
}

/** A view with its graph, its timeline, its tables, and its files. */
function present(title: string, facts: string[], answer: unknown, trail: Trail, route: Route, uses: UseRow[], hops: HopRow[], gaps: Gap[], more: Table[], omitted = 0): void {
  const { figure, left } = trail.draw(route);
  const chart = timeline(uses, hops, gaps);
  const tables = [...more, hopTable(route, hops), useTable(route, uses)].filter((shown) => shown.rows.length > 0);
  const button = (text: string, act: () => void) => {
    const made = element("button", { type: "button" }, text);
    made.addEventListener("click", act);
    return made;
  };
  const tools = element(
    "div",
    { class: "tools", role: "group", "aria-label": "This view as a file" },
    button("Copy link", () => void navigator.clipboard?.writeText(location.href)),
    button("JSON", () => save(`${route.name}.json`, "application/json", JSON.stringify(answer, null, 2))),
    button("CSV", () => {
      for (const shown of tables) {
        const rows = shown.rows.map((row) => row.map((value) => value.cell));
        save(`${route.name} ${shown.title}.csv`, "text/csv", csv(shown.head, rows));
      }
    }),
    button("SVG", () => save(`${route.name}.svg`, "image/svg+xml", svgText(figure))),
  );
  main.replaceChildren(
    element("h2", {}, title),
    ...facts.map((text) => element("p", { class: "facts" }, text)),
    ...gapBox(gaps),
    ...(omitted > 0 ? [element("p", { class: "facts", role: "note" }, `The worst of many: ${omitted} more are neither here nor in the files; keytrail query has all, and a shorter time fewer.`)] : []),
    tools,
    figure,
    ...(left > 0 ? [element("p", { class: "facts" }, `${left} more edges, none worse than these, are in the tables.`)] : []),
    ...(chart === undefined ? [] : [element("h3", {}, "When"), chart]),
    ...tables.flatMap((shown) => [element("h3", {}, shown.title), table(shown.head, shown.rows, shown.title)]),
  );
}

function fact(credential: Credential): string {
  const parts = [credential.id, credential.class, credential.role, credential.lifetime];
  if (credential.owner !== undefined) parts.push(`owner ${credential.owner}`);
  if (credential.label !== undefined) parts.push(credential.label);
  if (credential.expires_at !== undefined) parts.push(`expires ${when(credential.expires_at)}`);
  for (const place of credential.sources ?? []) parts.push(`${place.source} ${place.place}`);
  return parts.join(" · ");
}

const byId = (credentials: Credential[]) => new Map(credentials.map((credential) => [credential.id, credential]));

interface Chain {
  omitted: number;
  credentials: Credential[];
  links: Link[];
  hops: HopRow[];
  gaps: Gap[];
}

/** Shows an answer, unless another view was requested meanwhile. */
type Draw = () => void;

async function credential(route: Route): Promise<Draw> {
  const parameters = { credential: route.name, since: route.since, until: route.until, limit: MOST };
  const [who, chain, found] = await Promise.all([
    ask<{ credentials: Credential[]; uses: UseRow[]; total: number; gaps: Gap[] }>("who", parameters),
    ask<Chain>("chain", parameters),
    ask<{ findings: Finding[] }>("findings", { ...parameters, limit: String(ROWS) }),
  ]);
  const credentials = byId([...chain.credentials, ...who.credentials]);
  const hops = strongest(chain.hops);
  const trail = new Trail(credentials).uses(who.uses).hops(hops).links(chain.links);
  const title = who.credentials.map((known) => credentialName(known, known.id)).join(", ");
  const more = [findingTable(route, found.findings)];
  return () => present(title, who.credentials.map(fact), { who, chain, findings: found.findings }, trail, route, who.uses, hops, who.gaps, more, chain.omitted + who.total - who.uses.length);
}

interface Reach {
  credential: Credential;
  uses: UseRow[];
  hops: HopRow[];
}

async function workload(route: Route): Promise<Draw> {
  const parameters = { workload: route.name, since: route.since, until: route.until, limit: MOST };
  const [radius, found] = await Promise.all([
    ask<{ workloads: { kind: string; image?: string }[]; credentials: Reach[]; minted: Link[]; gaps: Gap[]; omitted: number }>("blast-radius", parameters),
    ask<{ findings: Finding[] }>("findings", { ...parameters, limit: String(ROWS) }),
  ]);
  const uses = radius.credentials.flatMap((reach) => reach.uses);
  const hops = strongest(radius.credentials.flatMap((reach) => reach.hops));
  const credentials = byId(radius.credentials.map((reach) => reach.credential));
  const trail = new Trail(credentials).uses(uses).hops(hops).links(radius.minted);
  const kinds = [...new Set(radius.workloads.map((known) => known.kind))].join(", ");
  const facts = [`${kinds}; blast radius: ${radius.credentials.length} credentials, ${hops.length} hops`];
  const reach: Table = {
    title: "Within its reach",
    head: ["Credential", "Class", "Role", "Lifetime", "Places"],
    rows: radius.credentials.map(({ credential: known }) => [
      { cell: known.id, node: link({ ...route, kind: "credential", name: known.id }, credentialName(known, known.id)) },
      { cell: known.class },
      { cell: known.role },
      { cell: known.lifetime },
      { cell: (known.sources ?? []).map((place) => `${place.source} ${place.place}`).join(", ") },
    ]),
  };
  return () => present(route.name, facts, { radius, findings: found.findings }, trail, route, uses, hops, radius.gaps, [findingTable(route, found.findings), reach], radius.omitted);
}

async function destination(route: Route): Promise<Draw> {
  const parameters = { destination: route.name, since: route.since, until: route.until, limit: MOST };
  const answer = await ask<{ hops: HopRow[]; total: number; gaps: Gap[] }>("hops", parameters);
  if (answer.hops.length === 0) throw new Error(`no hop to \`${route.name}\` is known`);
  const hops = strongest(answer.hops);
  const trail = new Trail(new Map()).hops(hops);
  return () => present(route.name, [`${answer.total} hops`], answer, trail, route, [], hops, answer.gaps, [], answer.total - answer.hops.length);
}

async function overview(route: Route): Promise<Draw> {
  const parameters = { since: route.since, until: route.until, limit: String(ROWS) };
  const [found, inventory] = await Promise.all([
    ask<{ findings: Finding[]; total: number; gaps: Gap[] }>("findings", parameters),
    ask<{ credentials: Item[]; total: number }>("credentials", { limit: String(ROWS) }),
  ]);
  const findings = findingTable(route, found.findings);
  const credentials: Table = {
    title: "Credentials",
    head: ["Credential", "Class", "Role", "Lifetime", "Age", "Expires", "Owner", "Workloads", "Last use"],
    rows: inventory.credentials.map((item) => [
      { cell: item.id, node: link({ ...route, kind: "credential", name: item.id }, `${credentialName(item, item.id)} ${item.id}`) },
      { cell: item.class },
      { cell: item.role },
      { cell: item.lifetime },
      { cell: length(item.age_seconds) },
      item.expires_at === undefined ? { cell: "–" } : time(item.expires_at),
      { cell: item.owner ?? "–" },
      { cell: item.workloads.slice(0, 3).join(", ") + (item.workloads.length > 3 ? `, +${item.workloads.length - 3}` : "") },
      time(item.last_used),
    ]),
  };
  return () => main.replaceChildren(
    element("h2", {}, `${found.total} findings, ${inventory.total} credentials`),
    ...gapBox(found.gaps),
    element("h3", {}, findings.title),
    findings.rows.length > 0 ? table(findings.head, findings.rows, findings.title) : element("p", {}, "No findings."),
    element("h3", {}, credentials.title),
    table(credentials.head, credentials.rows, credentials.title),
  );
}

const VIEWS = { overview, credential, workload, destination };
/** The last requested view: answers to earlier requests are dropped. */
let asked = 0;
/** The user is typing: the input is not overwritten by an earlier answer. */
let typed = false;
query.addEventListener("input", () => (typed = true));
query.addEventListener("blur", () => (typed = false));

async function show(): Promise<void> {
  const route = routeOf(location.hash);
  const turn = ++asked;
  if (!typed) query.value = route.name;
  since.value = route.since;
  until.value = route.until;
  document.title = route.name === "" ? "Keytrail" : `${route.name} – Keytrail`;
  main.setAttribute("aria-busy", "true");
  try {
    const draw = await VIEWS[route.kind](route);
    if (turn !== asked) return;
    draw();
  } catch (error) {
    if (turn !== asked) return;
    main.removeAttribute("aria-busy");
    if (error instanceof NeedsToken) {
      main.replaceChildren(tokenForm(error.message));
      return;
    }
    const said = error instanceof Error ? error.message : String(error);
    main.replaceChildren(element("p", { class: "error", role: "alert" }, said));
  }
  if (turn === asked) main.removeAttribute("aria-busy");
}

function tokenForm(said: string): HTMLElement {
  const input = element("input", { id: "token", type: "password", autocomplete: "off", required: "" });
  const made = element("form", { class: "error" }, element("label", { for: "token" }, `${said} `), input, " ", element("button", {}, "Go on"));
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    void start(() => signIn(input.value.trim()));
  });
  return made;
}

/** What a search word refers to, the most frequently searched kind first. */
async function find(text: string): Promise<Route["kind"]> {
  const answers = async (question: string, parameters: Record<string, string>) => {
    try {
      await ask(question, parameters);
      return true;
    } catch (error) {
      // The view reports missing permission, ambiguity and rate limits.
      return error instanceof NeedsToken || (error instanceof Refused && error.status !== 404);
    }
  };
  if (await answers("who", { credential: text, limit: "1" })) return "credential";
  if (await answers("blast-radius", { workload: text, limit: "1" })) return "workload";
  return "destination";
}

/** The last search: results of earlier ones are dropped. */
let searched = 0;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  typed = false;
  const name = query.value.trim();
  const range = { since: since.value.trim(), until: until.value.trim() };
  if (name === "") {
    location.hash = hashOf({ kind: "overview", name: "", ...range });
    return;
  }
  const turn = ++searched;
  void find(name).then((kind) => {
    if (turn === searched) location.hash = hashOf({ kind, name, ...range });
  });
});

// The part after `#` is a view, so this link must not change it.
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing) {
    event.preventDefault();
    query.focus();
    query.select();
  }
});

/** Suggested names; the agent knows more than a list can show. */
async function suggest(): Promise<void> {
  const [credentials, workloads] = await Promise.all([
    ask<{ credentials: Item[] }>("credentials", { limit: String(ROWS) }),
    ask<{ workloads: { namespace?: string; name: string; kind: string }[] }>("workloads", { limit: String(ROWS) }),
  ]);
  const names = new Set<string>();
  for (const item of credentials.credentials) names.add(item.name ?? item.id);
  for (const item of workloads.workloads) names.add(workloadKey(item));
  known.replaceChildren(...[...names].map((name) => element("option", { value: name })));
}

/** Opens the page once a session is there. */
async function start(session: () => Promise<void>): Promise<void> {
  try {
    await session();
  } catch (error) {
    main.replaceChildren(tokenForm(error instanceof NeedsToken ? error.message : String(error)));
    return;
  }
  await show();
  await suggest().catch(() => undefined);
}

window.addEventListener("hashchange", () => {
  if (hasCode()) void start(enter);
  else void show().then(() => typed || main.focus({ preventScroll: true }));
});
void start(enter);
