//! Where connections come from, and who is behind them.

use super::connection::{self, ByteStream};
use super::tls::{self, TlsError};
use crate::api::{Api, Origin};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// Time for a TLS handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept: it fails when descriptors run out, and would again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket.
pub struct Listener(Kind);

enum Kind {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    /// The socket, and the one uid besides 0 that may use it.
    Unix(UnixListener, u32, PathBuf),
}

impl Listener {
    /// Binds a plain TCP socket.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn tcp(address: SocketAddr) -> io::Result<Self> {
        Ok(Self(Kind::Tcp(TcpListener::bind(address).await?)))
    }

    /// Binds a TCP socket for TLS. Key and certificate lie in `state_dir` as `xapi-ssl.pem`; where
    /// there is none, a self-signed one for `names` is made.
    ///
    /// # Errors
    /// When the address cannot be bound or the certificate cannot be used.
    pub async fn tls(
        address: SocketAddr,
        state_dir: &Path,
        names: &[String],
    ) -> Result<Self, TlsError> {
        let acceptor = tls::acceptor(state_dir, names)?;
        let socket = TcpListener::bind(address).await.map_err(TlsError::Bind)?;
        Ok(Self(Kind::Tls(socket, acceptor)))
    }

    /// Binds the socket for root of this host. A file that a dead daemon left is replaced; one that
    /// somebody answers on is not.
    ///
    /// # Errors
    /// `AddrInUse` when another process listens, `AlreadyExists` when there is something else than a
    /// socket; whatever the file system says.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        if UnixStream::connect(path).await.is_ok() {
            let text = format!("another process listens on {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            // Whatever else is there was not put there by a daemon.
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let socket = UnixListener::bind(path)?;
        // The uid of each peer is checked too: between bind and here the mode is the umask's.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let owner = std::fs::metadata(path)?.uid();
        Ok(Self(Kind::Unix(socket, owner, path.to_owned())))
    }

    /// Returns the address of a TCP socket: with port 0 the kernel chose the port.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Kind::Tcp(socket) | Kind::Tls(socket, _) => socket.local_addr().ok(),
            Kind::Unix(..) => None,
        }
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.0, Kind::Unix(..))
    }

    async fn next(&self) -> io::Result<Accepted> {
        Ok(match &self.0 {
            Kind::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Accepted::Ready(Box::new(stream), Origin::Remote(peer))
            }
            Kind::Tls(socket, acceptor) => {
                let (stream, peer) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Accepted::Handshake(Box::new(acceptor.accept(stream)), peer)
            }
            Kind::Unix(socket, owner, path) => {
                let (stream, _) = socket.accept().await?;
                let uid = stream.peer_cred()?.uid();
                if uid != 0 && uid != *owner {
                    tracing::warn!(uid, path = %path.display(), "peer is not root");
                    return Ok(Accepted::Refused);
                }
                Accepted::Ready(Box::new(stream), Origin::LocalRoot)
            }
        })
    }
}

enum Accepted {
    Ready(Box<dyn ByteStream>, Origin),
    Handshake(Box<tokio_rustls::Accept<tokio::net::TcpStream>>, SocketAddr),
    Refused,
}

/// Accepts connections until the interface stops; then removes the local socket's file.
pub(super) async fn accept(
    listener: Listener,
    api: Arc<Api>,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
) {
    let stopping = api.stopping().clone();
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            () = stopping.cancelled() => break,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            accepted = listener.next() => accepted,
            () = stopping.cancelled() => break,
        };
        match accepted {
            Ok(accepted) => {
                let api = api.clone();
                connections.spawn(async move {
                    serve(&api, accepted).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if let Kind::Unix(_, _, path) = &listener.0 {
        drop(std::fs::remove_file(path));
    }
}

async fn serve(api: &Arc<Api>, accepted: Accepted) {
    match accepted {
        Accepted::Ready(stream, origin) => connection::serve(api, stream, origin).await,
        Accepted::Handshake(handshake, peer) => {
            match tokio::time::timeout(HANDSHAKE_TIME_MAX, *handshake).await {
                Ok(Ok(stream)) => {
                    connection::serve(api, Box::new(stream), Origin::Remote(peer)).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
        }
        Accepted::Refused => {}
    }
}
