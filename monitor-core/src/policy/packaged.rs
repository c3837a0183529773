//! Programs that packages installed.

/// Where packages put programs.
const DIRECTORIES: [&str; 5] = ["/usr/bin/", "/usr/sbin/", "/usr/lib/", "/bin/", "/sbin/"];

/// Whether a program of the host is where packages put them.
pub fn is_packaged(exe: &str) -> bool {
    DIRECTORIES
        .iter()
        .any(|directory| exe.starts_with(directory))
}
