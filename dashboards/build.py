"""Builds Keytrail's Grafana dashboards with Grafana's SDK: build.py [DIRECTORY].

The output is committed in grafana/. `cargo xtask dashboards` checks that it is up to date, and a scenario sends every
query to a real Prometheus.
"""

import json
import pathlib
import sys

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode, BigValueGraphMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
WIDE, HALF, THIRD, QUARTER = 24, 12, 8, 6


def query(expr, legend="", instant=False):
    """One query; a table needs only the last value."""
    built = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id("A")
    if instant:
        return built.instant().format(PromQueryFormat.TABLE)
    return built.range()


def new(series, window):
    """Growth of counters; a new one has not increased yet, and counts with its value."""
    return f"((increase({series}[{window}]) > 0) or ({series} > 0 unless {series} offset {window}))"


def lines(title, about, expr, legend, unit="short", span=HALF):
    return (
        timeseries.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .fill_opacity(10)
        .span(span)
        .height(8)
        .with_target(query(expr, legend))
    )


def number(title, about, expr, unit="short", span=QUARTER, bad=False):
    """A number; where it counts what is bad, it is red from one on."""
    steps = [Threshold(color="green"), Threshold(value=1, color="red")] if bad else [Threshold(color="text")]
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA)
        .span(span)
        .height(4)
        .with_target(query(expr))
    )


def rows(title, about, expr, span=WIDE, height=9):
    return (
        table.Panel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .span(span)
        .height(height)
        .with_target(query(expr, instant=True))
    )


def board(uid, title, about, variables=()):
    source = dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus")
    link = (
        dashboard.DashboardLink("Keytrail")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["keytrail"])
        .as_dropdown(True)
        .keep_time(True)
        .include_vars(True)
    )
    built = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["keytrail"])
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(link)
        .with_variable(source)
    )
    for name, label, expr, all_too in variables:
        variable = (
            dashboard.QueryVariable(name)
            .label(label)
            .query(expr)
            .datasource(SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        )
        if all_too:
            variable = variable.include_all(True).all_value(".*")
        built = built.with_variable(variable)
    return built


def fleet():
    """Workloads, credentials, destinations, and findings."""
    return (
        board("keytrail-fleet", "Keytrail / fleet", "Who uses which credential where, over all nodes.")
        .with_panel(number("Nodes", "Scraped agents.", "count(keytrail_build_info)"))
        .with_panel(number("Credentials in use", "Used within the last day.", "count(count by (credential) (time() - keytrail_credential_last_used_timestamp_seconds < 86400)) or vector(0)"))
        .with_panel(number("Unexpected hops", "In the last hour.", 'sum(%s) or vector(0)' % new('keytrail_hops_total{verdict="unexpected"}', "1h"), bad=True))
        .with_panel(number("Findings above low", "In the last hour.", 'sum(%s) or vector(0)' % new('keytrail_findings_total{severity!="low"}', "1h"), bad=True))
        .with_panel(lines("Findings", "By rule and severity, including low.", "sum by (rule, severity) " + new("keytrail_findings_total", "$__rate_interval"), "{{rule}} {{severity}}"))
        .with_panel(lines("Hops", "By evidence and verdict.", "sum by (evidence, verdict) (rate(keytrail_hops_total[$__rate_interval]))", "{{verdict}}, {{evidence}}", "ops"))
        .with_panel(rows("Findings by workload", "Since the agents started, the most frequent first.", 'sort_desc(sum by (severity, rule, namespace, workload) (keytrail_findings_total))'))
        .with_panel(rows("Unexpected hops", "Which workload took which credential where.", 'sort_desc(sum by (namespace, workload, credential, destination, evidence) (keytrail_hops_total{verdict="unexpected"}))'))
        .with_panel(lines("Uses by class", "Credentials picked up or presented.", "sum by (class) (rate(keytrail_credential_uses_total[$__rate_interval]))", "{{class}}", "ops"))
        .with_panel(lines("Destinations", "The ten most frequent.", "topk(10, sum by (destination) (rate(keytrail_hops_total[$__rate_interval])))", "{{destination}}", "ops"))
        .with_panel(rows("Workloads and credentials", "Who uses what, and how it was picked up.", "sort_desc(sum by (namespace, workload, credential, class, source) (keytrail_credential_uses_total))"))
        .with_panel(lines("Gaps: events lost", "By probe and stage. Answers about that time have a gap.", "sum by (instance, probe, stage) (increase(keytrail_events_lost_total[$__rate_interval]))", "{{instance}} {{probe}} {{stage}}"))
        .with_panel(lines("Gaps: not attributed", "Workloads without a name, by reason.", "sum by (reason) (increase(keytrail_unattributed_total[$__rate_interval]))", "{{reason}}"))
    )


def credential():
    """One credential: age, users, destinations."""
    chosen = [("credential", "Credential", "label_values(keytrail_credential_uses_total, credential)", False)]
    of = '{credential="$credential"}'
    return (
        board("keytrail-credential", "Keytrail / credential", "Who uses one credential, and where it goes.", chosen)
        .with_panel(number("First seen", "By any agent.", f"min(keytrail_credential_first_seen_timestamp_seconds{of}) * 1000", "dateTimeFromNow"))
        .with_panel(number("Last used", "On any node.", f"max(keytrail_credential_last_used_timestamp_seconds{of}) * 1000", "dateTimeFromNow"))
        .with_panel(number("Expires", "If known.", f"max(keytrail_credential_expiry_timestamp_seconds{of}) * 1000", "dateTimeFromNow"))
        .with_panel(number("Workloads", "Using it since the agents started.", f"count(count by (namespace, workload) (keytrail_credential_uses_total{of})) or vector(0)"))
        .with_panel(rows("What it is", "A name may refer to several.", f"max by (id, class, role, lifetime, owner) (keytrail_credential_info{of})", height=5))
        .with_panel(lines("Uses", "By workload and source.", f"sum by (namespace, workload, source) (rate(keytrail_credential_uses_total{of}[$__rate_interval]))", "{{namespace}} {{workload}} {{source}}", "ops"))
        .with_panel(lines("Hops", "By destination and verdict.", f"sum by (destination, verdict) (rate(keytrail_hops_total{of}[$__rate_interval]))", "{{destination}} {{verdict}}", "ops"))
        .with_panel(rows("Where it went", "Since the agents started; `keytrail query where` has the rest.", f"sort_desc(sum by (namespace, workload, destination, evidence, verdict) (keytrail_hops_total{of}))"))
    )


def workload():
    """One workload: what it can present."""
    chosen = [
        ("namespace", "Namespace", "label_values(keytrail_credential_uses_total, namespace)", True),
        ("workload", "Workload", 'label_values(keytrail_credential_uses_total{namespace=~"$namespace"}, workload)', False),
    ]
    of = '{namespace=~"$namespace", workload="$workload"}'
    return (
        board("keytrail-workload", "Keytrail / workload", "What one workload holds and presents, and its findings.", chosen)
        .with_panel(number("Credentials", "Within its reach.", f"count(count by (credential) (keytrail_credential_uses_total{of})) or vector(0)", span=THIRD))
        .with_panel(number("Destinations", "Reached with them.", f"count(count by (destination) (keytrail_hops_total{of})) or vector(0)", span=THIRD))
        .with_panel(number("Findings above low", "Since the agents started.", f'sum(keytrail_findings_total{of[:-1]}, severity!="low"}}) or vector(0)', span=THIRD, bad=True))
        .with_panel(lines("Uses", "By credential and source.", f"sum by (credential, class, source) (rate(keytrail_credential_uses_total{of}[$__rate_interval]))", "{{credential}} {{source}}", "ops"))
        .with_panel(lines("Hops", "By destination and verdict.", f"sum by (destination, verdict) (rate(keytrail_hops_total{of}[$__rate_interval]))", "{{destination}} {{verdict}}", "ops"))
        .with_panel(rows("Blast radius", "What it holds and where it went; `keytrail query blast-radius` has the rest.", f"sort_desc(sum by (credential, destination, evidence, verdict) (keytrail_hops_total{of}))"))
        .with_panel(rows("Findings", "By rule.", f"sort_desc(sum by (rule, severity) (keytrail_findings_total{of}))"))
    )


def health():
    """The agent itself."""
    chosen = [("instance", "Node", "label_values(keytrail_build_info, instance)", True)]
    of = '{instance=~"$instance"}'
    latency = (
        heatmap.Panel()
        .title("Detection latency")
        .description("From the event in the kernel to its record.")
        .datasource(SOURCE)
        .span(HALF)
        .height(8)
        .with_target(
            # Prometheus's buckets have in them what is in the smaller ones; so told, Grafana takes them apart.
            query(f"sum by (le) (increase(keytrail_detection_latency_seconds_bucket{of}[$__rate_interval]))", "{{le}}")
            .format(PromQueryFormat.HEATMAP)
        )
    )
    return (
        board("keytrail-health", "Keytrail / health", "What the agents observe and lose, and what they cost.", chosen)
        .with_panel(number("Agents", "Scraped, by version.", f"sum by (version) (keytrail_build_info{of})"))
        .with_panel(number("Probes not attached", "Mechanisms that did not attach.", f"count(keytrail_probe_attached{of} == 0) or vector(0)", bad=True))
        .with_panel(number("Events lost", "In the last hour, in the rings.", f'sum(increase(keytrail_events_lost_total{of[:-1]}, stage="ring"}}[1h])) or vector(0)', bad=True))
        .with_panel(number("Configurations refused", "Agents that keep a previous one.", f"count(keytrail_config_reload_success{of} == 0) or vector(0)", bad=True))
        .with_panel(rows("Probes", "By mechanism: 1 if it is attached.", f"sort(min by (instance, probe, mechanism) (keytrail_probe_attached{of}))"))
        .with_panel(lines("Events", "By probe.", f"sum by (probe) (rate(keytrail_events_total{of}[$__rate_interval]))", "{{probe}}", "ops"))
        .with_panel(lines("Lost", "By probe and stage.", f"sum by (probe, stage) (increase(keytrail_events_lost_total{of}[$__rate_interval]))", "{{probe}} {{stage}}"))
        .with_panel(latency)
        .with_panel(lines("Latency, 99th percentile", "Of observations.", f"histogram_quantile(0.99, sum by (instance, le) (rate(keytrail_detection_latency_seconds_bucket{of}[$__rate_interval])))", "{{instance}}", "s"))
        .with_panel(lines("Processor", "Of each agent, as a share of one core.", f"rate(process_cpu_seconds_total{of}[$__rate_interval]) and on (instance, job) keytrail_build_info", "{{instance}}", "percentunit"))
        .with_panel(lines("Memory", "Resident, of each agent.", f"process_resident_memory_bytes{of} and on (instance, job) keytrail_build_info", "{{instance}}", "bytes"))
        .with_panel(lines("Series folded", "Updates counted under `other`, by family.", f"sum by (family) (increase(keytrail_series_folded_total{of}[$__rate_interval]))", "{{family}}"))
    )


def main():
    into = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "grafana")
    into.mkdir(parents=True, exist_ok=True)
    for built in (fleet(), credential(), workload(), health()):
        made = built.build()
        text = JSONEncoder(sort_keys=True, indent=2).encode(made)
        # What the SDK reads back is what it wrote: the schema holds.
        again = type(made).from_json(json.loads(text))
        assert json.loads(JSONEncoder(sort_keys=True, indent=2).encode(again)) == json.loads(text), made.uid
        (into / f"{made.uid}.json").write_text(text + "\n")


main()
