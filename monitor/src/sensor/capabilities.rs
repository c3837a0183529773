//! The capabilities that the agent needs.

/// The capabilities that are sufficient without root.
pub const CAPABILITIES: &str =
    "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH";

/// Bits of the effective capability set: dac_read_search, net_admin, sys_ptrace, perfmon, bpf.
const CAPABILITY_BITS: u64 = 1 << 2 | 1 << 12 | 1 << 19 | 1 << 38 | 1 << 39;

/// Whether this process has all the capabilities that the agent needs.
pub fn has_capabilities() -> bool {
    effective_capabilities().is_some_and(|bits| bits & CAPABILITY_BITS == CAPABILITY_BITS)
}

/// The effective capability set of this process, one bit per capability.
pub fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
}

#[cfg(test)]
mod tests {
    use super::CAPABILITIES;

    /// The shipped unit and chart grant exactly the capabilities that the agent requires.
    #[test]
    fn shipped_manifests_grant_these_capabilities() {
        let needed: Vec<&str> = CAPABILITIES
            .split([',', ' '])
            .filter(|word| word.starts_with("CAP_"))
            .collect();
        let unit = include_str!("../../../deploy/systemd/keytrail.service");
        let bounding = unit
            .lines()
            .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        assert_eq!(bounding, Some(needed.join(" ").as_str()));
        let chart = include_str!("../../../deploy/helm/keytrail/templates/daemonset.yaml");
        let bare: Vec<&str> = needed
            .iter()
            .filter_map(|name| name.strip_prefix("CAP_"))
            .collect();
        assert!(chart.contains(&format!("add: [{}\n", bare.join(", "))));
        assert!(chart.contains("drop: [ALL]") && chart.contains("privileged: false"));
    }
}
