//! Home directories of the host's users, from its `/etc/passwd`.

use super::identify::below_root;
use crate::host;
use rustix::fs::OFlags;
use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// Bytes of the file that are read.
const BYTES_MAX: u64 = 1 << 20;
/// Maximum number of users.
const USERS_MAX: usize = 10_000;

/// The home directory of each user that has one.
pub(super) fn homes() -> io::Result<Vec<(u32, String)>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = below_root(host::pid(), Path::new("/etc/passwd"), flags)?;
    let mut text = Vec::new();
    File::from(file).take(BYTES_MAX).read_to_end(&mut text)?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<(u32, String)> {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let home = fields.get(5).filter(|home| home.len() > 1)?;
            Some((fields.get(2)?.parse().ok()?, (*home).to_owned()))
        })
        .take(USERS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_with_a_home() {
        let text =
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/x\nbroken\na:x:b:c:d:/e:\n";
        assert_eq!(parse(text), [(0, "/root".to_owned())]);
        assert!(!homes().expect("this machine has users").is_empty());
    }
}
