//! TLS: the configured certificate, or one that the agent makes for itself.

use crate::{config::settings::TlsFiles, private_file};
use axum_server::tls_rustls::RustlsConfig;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use thiserror::Error;
use tokio::time::MissedTickBehavior;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("the certificate {path} cannot be used: {reason}")]
    Invalid { path: PathBuf, reason: String },
    #[error("cannot write the certificate {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

/// How often the certificate files are reloaded: renewing them needs no restart.
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// Loads TLS from files.
pub fn load(files: &TlsFiles) -> Result<RustlsConfig, CertificateError> {
    Ok(RustlsConfig::from_config(server_config(files)?))
}

/// As [`load`], and reloads the files regularly, in a thread that may wait for them.
pub fn load_and_follow(files: &TlsFiles) -> Result<RustlsConfig, CertificateError> {
    let config = load(files)?;
    let (renewed, files) = (config.clone(), files.clone());
    tokio::spawn(async move {
        let mut every = tokio::time::interval(RELOAD_INTERVAL);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let files = files.clone();
            match tokio::task::spawn_blocking(move || server_config(&files)).await {
                Ok(Ok(config)) => renewed.reload_from_config(config),
                Ok(Err(error)) => tracing::warn!(%error, "the previous certificate stays in use"),
                // The runtime ends.
                Err(_) => return,
            }
        }
    });
    Ok(config)
}

/// The certificate of this host in the state directory, which is made at the first start. It does
/// not expire: clients pin it, or do not verify it.
pub fn own(state_dir: &Path, names: Vec<String>) -> Result<TlsFiles, CertificateError> {
    let files = TlsFiles {
        certificate: state_dir.join("tls.crt"),
        key: state_dir.join("tls.key"),
    };
    // One that cannot be used, for whatever reason, is of no use to anybody.
    if server_config(&files).is_ok() {
        return Ok(files);
    }
    let made =
        rcgen::generate_simple_self_signed(names).map_err(|error| CertificateError::Invalid {
            path: files.certificate.clone(),
            reason: error.to_string(),
        })?;
    let key = zeroize::Zeroizing::new(made.signing_key.serialize_pem());
    for (path, text) in [
        (&files.key, key.as_str()),
        (&files.certificate, made.cert.pem().as_str()),
    ] {
        private_file::write(path, text, None).map_err(|source| CertificateError::Write {
            path: path.clone(),
            source,
        })?;
    }
    Ok(files)
}

fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, CertificateError> {
    let invalid = |path: &Path| {
        let path = path.to_owned();
        move |reason: String| CertificateError::Invalid { path, reason }
    };
    let certificates: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&files.certificate)
            .and_then(Iterator::collect)
            .map_err(|error| invalid(&files.certificate)(error.to_string()))?;
    // The parser's error may quote the file: for a key only the fact that it is invalid is
    // reported.
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|_| invalid(&files.key)("it contains no private key in PEM".to_owned()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key)
        })
        .map_err(|error| invalid(&files.certificate)(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_host_has_one_certificate_that_only_root_reads() {
        let directory = tempfile::tempdir().expect("a directory");
        let make = || {
            own(
                directory.path(),
                vec!["node-1".to_owned(), "10.0.0.1".to_owned()],
            )
        };
        let files = make().expect("made");
        server_config(&files).expect("usable");
        for path in [&files.key, &files.certificate] {
            let mode = path.metadata().expect("there").mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
        let text = |path| std::fs::read_to_string(path).expect("text");
        let first = text(&files.certificate);
        make().expect("kept");
        assert_eq!(text(&files.certificate), first);
        // One that is gone, damaged, or does not belong to its key.
        for text in ["", "-----BEGIN CERTIFICATE-----\nFAKE\n", first.as_str()] {
            std::fs::write(&files.certificate, text).expect("written");
            std::fs::remove_file(&files.key).expect("removed");
            server_config(&make().expect("made again")).expect("a pair");
        }
    }
}
