//! What the kernel supports, as text.

use super::{
    TableAnswer,
    table::{FAINT, GREEN, RED, STRONG, clean, paint},
};
use crate::sensor::doctor::{DoctorReport, UnattachedProgram};
use std::fmt::Write as _;

impl TableAnswer for DoctorReport {
    fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{} {}", paint(STRONG, "Linux"), self.kernel);
        for check in &self.checks {
            let mark = match (check.ok, check.needed) {
                (true, _) => paint(GREEN, "ok  "),
                (false, true) => paint(RED, "no  "),
                (false, false) => paint(FAINT, "–   "),
            };
            let _ = writeln!(out, "{mark} {}: {}", check.name, check.detail);
        }
        for probe in &self.probes {
            let mark = if probe.attached {
                paint(GREEN, "ok  ")
            } else {
                paint(RED, "no  ")
            };
            let error = probe
                .error
                .as_ref()
                .map_or_else(String::new, |error| format!(": {error}"));
            let _ = writeln!(out, "{mark} {} by {}{error}", probe.probe, probe.mechanism);
            for passed in &probe.passed {
                let _ = writeln!(out, "       {}", paint(FAINT, &format!("not {passed}")));
            }
        }
        if !self.not_attached.is_empty() {
            let _ = writeln!(out, "\n{}", paint(STRONG, "Running without TLS probes"));
            for UnattachedProgram { file, reason } in &self.not_attached {
                let _ = writeln!(out, "  {}: {}", clean(file), clean(reason));
            }
        }
        let _ = writeln!(out, "\n{}", paint(STRONG, "Not seen"));
        for missed in &self.missed {
            let _ = writeln!(out, "  {missed}");
        }
        out
    }
}
