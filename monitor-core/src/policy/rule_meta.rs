//! What a rule says about itself.

/// What a rule says about itself.
#[derive(Debug)]
pub struct RuleMeta {
    pub name: &'static str,
    /// Its meaning, in one sentence.
    pub description: &'static str,
    /// OWASP Non-Human Identity Top 10 and MITRE ATT&CK.
    pub references: &'static [&'static str],
    /// The alert on its findings from `medium` up; `None` if it has none of these.
    pub alert: Option<AlertMeta>,
}

/// The texts of a rule's alert.
#[derive(Debug)]
pub struct AlertMeta {
    /// What happened, with `{workload}` for the workload, or `{instance}` if it concerns a node.
    pub summary: &'static str,
    /// The command that shows more than the findings, with `{workload}` for the workload.
    pub command: Option<&'static str>,
}
