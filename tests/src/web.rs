//! A web server on loopback that supports HTTP/1.1 and HTTP/2 over TLS, keeps connections open, and
//! answers any request.

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use std::{net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// A server that runs until the process ends.
#[derive(Clone, Copy, Debug)]
pub struct WebServer {
    pub address: SocketAddr,
}

impl WebServer {
    /// Starts on a free port of `ip`, without TLS.
    pub fn start_plain(ip: &str) -> Result<Self> {
        Self::serve(ip, None)
    }

    /// Starts on a free port of `ip`, with a self-signed certificate.
    pub fn start(ip: &str) -> Result<Self> {
        let certified = rcgen::generate_simple_self_signed(vec![
            "lab.example".to_owned(),
            "localhost".to_owned(),
        ])?;
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self::serve(ip, Some(TlsAcceptor::from(Arc::new(config))))
    }

    fn serve(ip: &str, acceptor: Option<TlsAcceptor>) -> Result<Self> {
        let listener =
            std::net::TcpListener::bind((ip, 0)).with_context(|| format!("cannot bind {ip}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::spawn(move || runtime.block_on(serve(listener, acceptor)));
        Ok(Self { address })
    }
}

async fn serve(listener: std::net::TcpListener, acceptor: Option<TlsAcceptor>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Some(acceptor) = acceptor else {
                return answer(stream).await;
            };
            // A client may close the connection at any time.
            if let Ok(stream) = acceptor.accept(stream).await {
                answer(stream).await;
            }
        });
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let answer = service_fn(|_: Request<Incoming>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from("ok\n"))))
    });
    // As above.
    let _ = Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}
