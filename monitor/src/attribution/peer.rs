//! Other agents on this host, which do the same as this one: an agent tried out beside the
//! installed one, or `keytrail doctor`.

use crate::observed::mapping::bounded_lines;
use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _};

/// Whether a process is an agent like this one, judged by what other users cannot control: it runs
/// as root, in the mount namespace of this agent or of the host, and it has mapped no code that this
/// process has not, which includes its program. `None` if it exited.
///
/// A preloaded library is mapped before the program's first instruction, so one check after each
/// exec is sufficient. File systems are not asked.
pub fn is_agent(pid: u32) -> Option<bool> {
    let namespace_of = |process: &str| {
        let metadata = fs::metadata(format!("/proc/{process}/ns/mnt")).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let of_root = fs::metadata(format!("/proc/{pid}")).ok()?.uid() == 0;
    let namespace = namespace_of(&pid.to_string())?;
    if !of_root || ![namespace_of("self"), namespace_of("1")].contains(&Some(namespace)) {
        return Some(false);
    }
    let code = code_of(&pid.to_string());
    if code.is_empty() {
        return None;
    }
    Some(code.is_subset(&code_of("self")))
}

/// The files that a process has mapped executable, by device and inode; anonymous executable memory
/// counts as one, apart from what the kernel maps into every process.
fn code_of(process: &str) -> HashSet<(String, u64)> {
    bounded_lines(&format!("/proc/{process}/maps"))
        .filter_map(|line| {
            let line = String::from_utf8_lossy(&line);
            let mut words = line.split_ascii_whitespace();
            let executable = words.nth(1)?.as_bytes().get(2) == Some(&b'x');
            let device = words.nth(1)?.to_owned();
            let inode: u64 = words.next()?.parse().ok()?;
            let of_kernel = matches!(words.next(), Some("[vdso]" | "[vsyscall]"));
            (executable && !of_kernel).then_some((device, inode))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn only_the_same_program_is_an_agent() {
        let mut other = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .expect("started");
        // Right after its exec it has mapped nothing yet.
        let judged = std::iter::repeat_with(|| is_agent(other.id())).find_map(|is_agent| is_agent);
        assert_eq!(judged, Some(false));
        other.kill().expect("killed");
        other.wait().expect("ended");
        assert_eq!(is_agent(other.id()), None, "it is gone");
    }
}
