//! tracefs: where it is mounted, and the fields of its tracepoints.

use std::path::Path;

/// The standard mount point of tracefs.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Mounts tracefs if it is not mounted: hosts without systemd do not mount it, and tracepoints are
/// identified by numbers in it.
pub fn ensure_tracefs() {
    let has_events = |path: &str| Path::new(path).join("events").is_dir();
    if has_events(TRACEFS) || has_events("/sys/kernel/debug/tracing") {
        return;
    }
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    match rustix::mount::mount("tracefs", TRACEFS, "tracefs", flags, None) {
        Ok(()) => tracing::info!("mounted tracefs at {TRACEFS}"),
        Err(error) => {
            tracing::warn!(%error, "tracefs is not mounted at {TRACEFS}, and mounting it failed")
        }
    }
}

/// The offsets of fields in a tracepoint's record, from its format in tracefs; zeros if it has none
/// of these names.
pub fn tracepoint_fields<const N: usize>(
    category: &str,
    name: &str,
    fields: [(&str, u32); N],
) -> [u32; N] {
    let text = std::fs::read_to_string(format!("{TRACEFS}/events/{category}/{name}/format"))
        .unwrap_or_default();
    fields.map(|(field, size)| parse_field(&text, field, size).unwrap_or(0))
}

fn parse_field(format: &str, field: &str, size: u32) -> Option<u32> {
    format.lines().find_map(|line| {
        let mut parts = line
            .trim()
            .strip_prefix("field:")?
            .split(';')
            .map(str::trim);
        let declared = parts.next()?.rsplit([' ', '*']).next()?;
        let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
        let width: u32 = parts.next()?.strip_prefix("size:")?.parse().ok()?;
        (declared == field && width == size).then_some(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_of_a_tracepoint() {
        let text = "name: io_uring_complete\nformat:\n\tfield:void * req;\toffset:16;\tsize:8;\tsigned:0;\n\tfield:int res;\toffset:32;\tsize:4;\tsigned:1;\n";
        assert_eq!(parse_field(text, "req", 8), Some(16));
        assert_eq!(parse_field(text, "res", 4), Some(32));
        assert_eq!(parse_field(text, "res", 8), None, "of another width");
        assert_eq!(parse_field("field:;;offset", "res", 4), None);
        assert_eq!(parse_field("", "res", 4), None);
    }

    proptest! {
        #[test]
        fn any_description_of_a_tracepoint(text in "(field:|offset:|size:|[ a-z0-9;:*\t\n-]){0,60}") {
            let _ = parse_field(&text, "res", 4);
        }
    }
}
