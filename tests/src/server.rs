//! A small HTTPS server on loopback. It accepts any server name, and answers any request.

use anyhow::{Context as _, Result};
use rustls::{ServerConfig, ServerConnection, Stream, pki_types::PrivateKeyDer};
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

/// A server that runs until the process ends.
#[derive(Clone, Copy, Debug)]
pub struct TlsServer {
    pub address: SocketAddr,
}

impl TlsServer {
    /// Starts on a free port of `ip`, with a self-signed certificate.
    pub fn start(ip: &str) -> Result<Self> {
        Self::start_at(&format!("{ip}:0"))
    }

    /// As [`start`](Self::start), at an address with a port.
    pub fn start_at(address: &str) -> Result<Self> {
        let certified = rcgen::generate_simple_self_signed(vec!["lab.example".to_owned()])?;
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)?;
        let config = Arc::new(config);
        let listener =
            TcpListener::bind(address).with_context(|| format!("cannot bind {address}"))?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let config = Arc::clone(&config);
                // A client may close the connection at any time.
                std::thread::spawn(move || answer(stream, config).ok());
            }
        });
        Ok(Self { address })
    }
}

fn answer(mut stream: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut connection = ServerConnection::new(config)?;
    let mut tls = Stream::new(&mut connection, &mut stream);
    let mut request = Vec::new();
    let mut buffer = [0u8; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = tls.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        request.extend_from_slice(&buffer[..read]);
    }
    tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n")?;
    connection.send_close_notify();
    connection.complete_io(&mut stream)?;
    Ok(())
}
