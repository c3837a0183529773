//! `keytrail page`: a link to the page of the agent on this host.

use super::args::CliError;
use crate::http::access::{
    link::{self, ApiPlace},
    token::ApiToken,
};
use jiff::Timestamp;
use std::{
    net::{TcpStream, ToSocketAddrs as _},
    path::Path,
    time::Duration,
};
use url::Url;

/// How long the agent may take to accept a connection.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Prints a link. Its code is after the `#`, which a browser keeps for itself: no server, proxy or
/// history of another site sees it.
pub(super) fn run(state_dir: &Path) -> Result<(), CliError> {
    let failed = |reason: String| {
        CliError::Failed(format!(
            "no agent answers for the state directory {}: {reason}; --state-dir takes another one",
            state_dir.display()
        ))
    };
    let place = ApiPlace::read(state_dir).map_err(|error| failed(error.to_string()))?;
    let url = Url::parse(&place.url).map_err(|error| failed(format!("api.json: {error}")))?;
    connect(&url).map_err(|error| failed(format!("{url}: {error}")))?;
    let token = ApiToken::read(&place.token_file).map_err(|error| failed(error.to_string()))?;
    let code = link::code(&token, &place.instance, Timestamp::now())
        .map_err(|error| CliError::Failed(format!("cannot get random bytes: {error}")))?;
    anstream::println!("{url}#code={code}");
    Ok(())
}

/// Whether anything listens there.
fn connect(url: &Url) -> std::io::Result<()> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or_default();
    let mut last = std::io::Error::other("it has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
