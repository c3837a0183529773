//! The token that API requests present.

use crate::private_file;
use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use zeroize::Zeroizing;

/// Why there is no token.
#[derive(Debug, Error)]
pub enum TokenError {
    #[error("cannot read the token file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the token file {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the token in {0} is shorter than {TOKEN_LEN_MIN} characters: make one with `openssl rand -hex 32`"
    )]
    Short(PathBuf),
    #[error("there is no group `{0}` in /etc/group: `token_group` takes a local group or a number")]
    NoGroup(String),
    #[error(
        "`token_group` needs a `token_file` outside the state directory, which only root can enter"
    )]
    GroupWithoutFile,
}

/// Minimum number of characters of a token.
const TOKEN_LEN_MIN: usize = 16;
/// Name of the generated token in the state directory.
const FILE_NAME: &str = "token";
/// Bytes of a generated token; it is written as hex digits.
const GENERATED_LEN: usize = 32;

/// Where the token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPlace {
    pub path: PathBuf,
    /// Whether the agent makes one where there is none.
    generate: bool,
    /// A group that may read it.
    group: Option<u32>,
}

impl TokenPlace {
    /// The configured place, or one in the state directory.
    pub fn new(
        state_dir: &Path,
        file: Option<PathBuf>,
        group: Option<&str>,
    ) -> Result<Self, TokenError> {
        let group = group.map(group_id).transpose()?;
        match file {
            Some(path) if group.is_some() && path.starts_with(state_dir) => {
                Err(TokenError::GroupWithoutFile)
            }
            None if group.is_some() => Err(TokenError::GroupWithoutFile),
            Some(path) => Ok(Self {
                path,
                generate: group.is_some(),
                group,
            }),
            None => Ok(Self {
                path: state_dir.join(FILE_NAME),
                generate: true,
                group: None,
            }),
        }
    }

    /// Reads the token; makes one first if there is none and none was configured.
    pub fn open(&self) -> Result<ApiToken, TokenError> {
        if self.generate && !self.path.exists() {
            self.write().map_err(|source| TokenError::Write {
                path: self.path.clone(),
                source,
            })?;
        }
        ApiToken::read(&self.path)
    }

    fn write(&self) -> io::Result<()> {
        let token = private_file::random_hex::<GENERATED_LEN>().map_err(io::Error::other)?;
        let text = Zeroizing::new(format!("{}\n", *token));
        private_file::write(&self.path, &text, self.group)
    }
}

/// The number of a local group, given by name or number.
fn group_id(group: &str) -> Result<u32, TokenError> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    });
    id.ok_or_else(|| TokenError::NoGroup(group.to_owned()))
}

/// The token that a request must present.
#[derive(Debug)]
pub struct ApiToken(Zeroizing<String>);

impl ApiToken {
    /// Reads a token; warns if others than its owner and group can read it too.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let cannot = |source| TokenError::Read {
            path: path.to_owned(),
            source,
        };
        let text = Zeroizing::new(fs::read_to_string(path).map_err(cannot)?);
        let token = text.trim();
        if token.len() < TOKEN_LEN_MIN {
            return Err(TokenError::Short(path.to_owned()));
        }
        if fs::metadata(path).map_err(cannot)?.mode() & 0o007 != 0 {
            tracing::warn!(file = %path.display(), "every user can read the token file: remove that permission");
        }
        Ok(Self(Zeroizing::new(token.to_owned())))
    }

    pub fn is(&self, presented: &str) -> bool {
        bool::from(presented.as_bytes().ct_eq(self.0.as_bytes()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("there").mode() & 0o777
    }

    #[test]
    fn a_host_has_one_token_that_only_root_reads() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = TokenPlace::new(directory.path(), None, None).expect("valid");
        let first = place.open().expect("made");
        assert_eq!(first.as_bytes().len(), 2 * GENERATED_LEN);
        assert_eq!(mode(&place.path), 0o600);
        let again = place.open().expect("read");
        assert_eq!(first.as_bytes(), again.as_bytes());
        assert!(again.is(std::str::from_utf8(first.as_bytes()).expect("text")));
        assert!(!again.is("") && !again.is("FAKE-of-another-agent-0001"));
    }

    #[test]
    fn a_configured_token_is_not_made_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("absent");
        let place = TokenPlace::new(Path::new("/state"), Some(file.clone()), None).expect("valid");
        let error = place.open().map(|_| ()).expect_err("there is none");
        assert!(error.to_string().contains("absent"), "{error}");
        assert!(!file.exists());
        fs::write(&file, "FAKE-short\n").expect("written");
        let error = place.open().map(|_| ()).expect_err("too short");
        assert!(error.to_string().contains("openssl rand"), "{error}");
        assert!(!error.to_string().contains("FAKE-short"), "{error}");
    }

    #[test]
    fn a_group_reads_a_token_outside_the_state_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("state");
        for file in [None, Some(state.join("token"))] {
            let error = TokenPlace::new(&state, file, Some("0")).expect_err("only root enters");
            assert!(error.to_string().contains("outside"), "{error}");
        }
        let error = TokenPlace::new(&state, None, Some("no-such-group")).expect_err("unknown");
        assert!(error.to_string().contains("no-such-group"), "{error}");
        let group = rustix::process::getegid().as_raw().to_string();
        let file = directory.path().join("token");
        let place = TokenPlace::new(&state, Some(file), Some(&group)).expect("valid");
        place.open().expect("made");
        assert_eq!(mode(&place.path), 0o640);
    }

    #[test]
    fn a_start_that_failed_while_it_wrote_the_token_does_no_harm() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = TokenPlace::new(directory.path(), None, None).expect("valid");
        fs::write(directory.path().join("token.unfinished"), "FAKE").expect("written");
        place.open().expect("made");
        assert_eq!(fs::read_dir(directory.path()).expect("readable").count(), 1);
        // A directory in which it cannot be written is named.
        let place = TokenPlace::new(Path::new("/proc"), None, None).expect("valid");
        let error = place.open().map(|_| ()).expect_err("not there");
        assert!(error.to_string().contains("/proc/token"), "{error}");
    }
}
