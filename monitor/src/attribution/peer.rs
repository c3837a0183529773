//! Other agents on this host, which do the same as this one: an agent tried out beside the
//! installed one, or `keytrail doctor`.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _};

/// Whether a process is an agent like this one, judged by what other users cannot control: it runs
/// as root, in the mount namespace of this agent or of the host; its program is the same file; and
/// it has mapped no code that this process has not. `None` if it exited.
///
/// A preloaded library is mapped before the program's first instruction, so one check after each
/// exec is sufficient.
pub fn is_agent(pid: u32) -> Option<bool> {
    let id = |path: &str| {
        fs::metadata(path)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()))
    };
    let of_root = fs::metadata(format!("/proc/{pid}")).ok()?.uid() == 0;
    let same_program = id("/proc/self/exe")? == id(&format!("/proc/{pid}/exe"))?;
    let namespace = id(&format!("/proc/{pid}/ns/mnt"))?;
    let known = [id("/proc/self/ns/mnt"), id("/proc/1/ns/mnt")];
    if !of_root || !same_program || !known.contains(&Some(namespace)) {
        return Some(false);
    }
    let code = code_of(&pid.to_string())?;
    Some(code.is_subset(&code_of("self")?))
}

/// The files that a process has mapped executable, by device and inode; anonymous executable memory
/// counts as one, apart from what the kernel maps into every process.
fn code_of(process: &str) -> Option<HashSet<(String, u64)>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).ok()?;
    let code = maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let executable = words.nth(1)?.as_bytes().get(2) == Some(&b'x');
        let device = words.nth(1)?.to_owned();
        let inode: u64 = words.next()?.parse().ok()?;
        let of_kernel = matches!(words.next(), Some("[vdso]" | "[vsyscall]"));
        (executable && !of_kernel).then_some((device, inode))
    });
    Some(code.collect())
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
        assert_eq!(is_agent(other.id()), Some(false));
        other.kill().expect("killed");
        other.wait().expect("ended");
        assert_eq!(is_agent(other.id()), None, "it is gone");
    }
}
