//! Kinds of hooks that are not used, for tests and for hosts on which one fails.

use std::sync::LazyLock;

/// Environment variable with kinds of hooks to skip, such as `lsm,fentry`, and of uprobes (`multi`,
/// `pmu`): for hosts where one interferes with another tool, and for tests of lower rungs.
pub const SKIP_HOOKS: &str = "KEYTRAIL_SKIP_HOOKS";

/// Whether a kind of hook is skipped.
pub fn is_skipped(kind: &str) -> bool {
    static SKIPPED_HOOKS: LazyLock<String> =
        LazyLock::new(|| std::env::var(SKIP_HOOKS).unwrap_or_default());
    SKIPPED_HOOKS
        .split(',')
        .any(|skipped| skipped.trim() == kind)
}
