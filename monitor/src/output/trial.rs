//! What expectations would have flagged, as text.

use super::{
    TableAnswer, sections,
    table::{STRONG, paint},
};
use monitor_core::policy::trial::Trial;
use std::fmt::Write as _;

impl TableAnswer for Trial {
    fn table(&self) -> String {
        let mut out = format!(
            "{} uses, {} hops and {} mints were evaluated.\n",
            self.uses, self.hops, self.mints
        );
        if self.findings.is_empty() {
            out.push_str("Nothing would have been flagged.\n");
        } else {
            let _ = writeln!(out, "{}", paint(STRONG, "Would have been flagged"));
            sections::finding_lines(&mut out, &self.findings);
        }
        if !self.settled.is_empty() {
            let _ = writeln!(
                out,
                "\n{}",
                paint(STRONG, "Was flagged, and would no longer be")
            );
            sections::finding_lines(&mut out, &self.settled);
        }
        let _ = writeln!(
            out,
            "\nNot evaluated, because the ledger does not contain what they need: {}",
            self.not_judged.join(", ")
        );
        sections::gaps(&mut out, &self.gaps);
        out
    }
}
