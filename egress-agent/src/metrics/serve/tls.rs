//! TLS of the metrics listener. The certificate is read again when its files change; one that cannot
//! be used leaves the last good one in force.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);
/// A client that has not finished its handshake by then is gone.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A certificate that follows its files.
#[derive(Debug)]
pub(super) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    changed: Stamps,
    looked: Instant,
}

/// When both files were written.
type Stamps = [Option<SystemTime>; 2];

impl Certificate {
    /// Reads chain and key, PEM.
    ///
    /// # Errors
    /// What is wrong, with the file.
    pub(super) fn load(chain: &Path, key: &Path) -> Result<Self, String> {
        let changed = stamps(chain, key);
        let certified = Arc::new(read(chain, key)?);
        let current = Current { key: certified, changed, looked: Instant::now() };
        Ok(Self { chain: chain.to_owned(), key: key.to_owned(), current: Mutex::new(current) })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK {
            current.looked = Instant::now();
            let changed = stamps(&self.chain, &self.key);
            if changed != current.changed {
                current.changed = changed;
                match read(&self.chain, &self.key) {
                    Ok(key) => {
                        tracing::info!("certificate of metrics read again");
                        current.key = Arc::new(key);
                    }
                    Err(error) => {
                        tracing::warn!(
                            error,
                            "certificate of metrics unusable; the last one stays"
                        );
                    }
                }
            }
        }
        Arc::clone(&current.key)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn stamps(chain: &Path, key: &Path) -> Stamps {
    [chain, key].map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
}

fn read(chain: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let wrong = |path: &Path, why: String| format!("{}: {why}", path.display());
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(chain, error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong(chain, "holds no certificate in PEM".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.map_err(|error| wrong(key, error.to_string()))?;
    let provider = ring::default_provider();
    let certified = CertifiedKey::from_der(certificates, private, &provider);
    certified.map_err(|error| {
        wrong(key, format!("does not go with the certificate in {}: {error}", chain.display()))
    })
}

/// Accepts connections, each of which shakes hands in its own time.
pub(super) struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsListener {
    /// # Errors
    /// When the provider has no usable protocol version.
    pub(super) fn new(listener: TcpListener, certificate: Arc<Certificate>) -> io::Result<Self> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = Handshaking;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        let shaking = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream));
        (Handshaking::Shaking(Box::pin(shaking)), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that shakes hands with its first read or write.
pub(super) enum Handshaking {
    Shaking(Pin<Box<tokio::time::Timeout<tokio_rustls::Accept<TcpStream>>>>),
    Done(Box<TlsStream<TcpStream>>),
}

impl Handshaking {
    fn stream(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Pin<&mut TlsStream<TcpStream>>>> {
        if let Self::Shaking(shaking) = self {
            let done = ready!(shaking.as_mut().poll(context)).map_err(io::Error::from)??;
            *self = Self::Done(Box::new(done));
        }
        match self {
            Self::Done(stream) => Poll::Ready(Ok(Pin::new(&mut **stream))),
            Self::Shaking(_) => Poll::Pending,
        }
    }
}

impl AsyncRead for Handshaking {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.get_mut().stream(context))?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Handshaking {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.get_mut().stream(context))?.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.get_mut().stream(context))?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // Nothing was said that would have to be ended.
            Self::Shaking(_) => Poll::Ready(Ok(())),
            Self::Done(stream) => Pin::new(&mut **stream).poll_shutdown(context),
        }
    }
}
