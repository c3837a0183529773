//! Other agents of this host, whose duty is what this one's is: an upgrade that runs beside the one
//! before it, or `keytrail doctor`.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt as _,
};

/// Bytes that are compared at a time.
const CHUNK: usize = 64 << 10;

/// Whether a process is an agent like this one, by what cannot be chosen by others: root runs it,
/// its program is byte for byte this one, and nothing is mapped into it that is not mapped into this
/// process. `None` where it is gone.
///
/// A library that is preloaded is mapped before the program's first instruction, so one look is
/// enough.
pub fn is_agent(pid: u32) -> Option<bool> {
    let own = "/proc/self/exe";
    let other = format!("/proc/{pid}/exe");
    let (own_file, other_file) = (fs::metadata(own).ok()?, fs::metadata(&other).ok()?);
    if own_file.len() != other_file.len() {
        return Some(false);
    }
    let of_root = fs::metadata(format!("/proc/{pid}")).ok()?.uid() == 0;
    let same_file = (own_file.dev(), own_file.ino()) == (other_file.dev(), other_file.ino());
    if !of_root || !(same_file || have_same_bytes(own, &other)?) {
        return Some(false);
    }
    // The programs themselves were compared by their bytes.
    let mut own = mapped("self")?;
    own.insert((other_file.dev(), other_file.ino()));
    Some(mapped(&pid.to_string())?.is_subset(&own))
}

fn have_same_bytes(one: &str, other: &str) -> Option<bool> {
    let (mut one, mut other) = (File::open(one).ok()?, File::open(other).ok()?);
    let (mut here, mut there) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let count = read_full(&mut one, &mut here)?;
        if read_full(&mut other, &mut there)? != count || here[..count] != there[..count] {
            return Some(false);
        }
        if count == 0 {
            return Some(true);
        }
    }
}

fn read_full(file: &mut File, into: &mut [u8]) -> Option<usize> {
    let mut count = 0;
    while count < into.len() {
        match file.read(&mut into[count..]).ok()? {
            0 => break,
            read => count += read,
        }
    }
    Some(count)
}

/// The files that a process has mapped executable, by device and inode.
fn mapped(process: &str) -> Option<HashSet<(u64, u64)>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).ok()?;
    let files = maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let executable = words.nth(1)?.as_bytes().get(2) == Some(&b'x');
        let (major, minor) = words.nth(1)?.split_once(':')?;
        let device = rustix::fs::makedev(
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        );
        let inode: u64 = words.next()?.parse().ok()?;
        (executable && inode != 0).then_some((device, inode))
    });
    Some(files.collect())
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
