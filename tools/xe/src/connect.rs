//! Connections to the server: its socket on this host, TCP, TLS. The first that worked is used for
//! every later one of the same conversation.

use crate::options::Options;
use crate::tls;
use anyhow::Context;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// A host that has not answered by then is away.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// A connection of any kind.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// How the server is reached.
#[derive(Debug, Clone)]
enum Route {
    Socket(PathBuf),
    Plain { host: String, port: u16 },
    Encrypted { host: String, port: u16 },
}

/// The way to the server.
pub(crate) struct Server {
    route: Route,
    config: Arc<ClientConfig>,
    seen: Arc<tls::Seen>,
}

impl Server {
    /// Finds the server and opens the first connection.
    ///
    /// # Errors
    /// When it is not there; the text names every place that was tried.
    pub(crate) async fn find(options: &Options) -> anyhow::Result<(Self, Box<dyn Wire>)> {
        let (config, seen) =
            tls::config(options.fingerprint.as_deref(), options.ca_file.as_deref())?;
        let mut tried = Vec::new();
        for route in routes(options) {
            let server = Self {
                route,
                config: config.clone(),
                seen: seen.clone(),
            };
            match server.connect().await {
                Ok(stream) => return Ok((server, stream)),
                Err(problem) => tried.push(format!("{problem:#}")),
            }
        }
        let hint = "is the server running? another one is given by -s and -p";
        anyhow::bail!("cannot reach a server ({hint})\n  {}", tried.join("\n  "))
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> anyhow::Result<Box<dyn Wire>> {
        match &self.route {
            Route::Socket(path) => {
                let stream = UnixStream::connect(path).await;
                Ok(Box::new(
                    stream.with_context(|| format!("socket {}", path.display()))?,
                ))
            }
            Route::Plain { host, port } => Ok(Box::new(tcp(host, *port).await?)),
            Route::Encrypted { host, port } => self.encrypted(host, *port).await,
        }
    }

    /// Opens a connection to where a URL points: a path is on the same server, `https://` may be another.
    /// Returns the path with it.
    pub(crate) async fn follow(&self, url: &str) -> anyhow::Result<(Box<dyn Wire>, String)> {
        let Some(rest) = url.strip_prefix("https://") else {
            anyhow::ensure!(
                url.starts_with('/'),
                "the server gave the URL {url:?}, which is no path"
            );
            return Ok((self.connect().await?, url.to_owned()));
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse()?),
            _ => (authority, 443),
        };
        Ok((self.encrypted(host, port).await?, format!("/{path}")))
    }

    /// Where the server is, in words.
    pub(crate) fn place(&self) -> String {
        match &self.route {
            Route::Socket(path) => format!("socket {}", path.display()),
            Route::Plain { host, port } => format!("{host} port {port}, not encrypted"),
            Route::Encrypted { host, port } => {
                let fingerprint = self.seen.fingerprint();
                format!("{host} port {port}, certificate {fingerprint}")
            }
        }
    }

    /// The value of a `Host` header.
    pub(crate) fn host(&self) -> &str {
        match &self.route {
            Route::Socket(_) => "localhost",
            Route::Plain { host, .. } | Route::Encrypted { host, .. } => host,
        }
    }

    async fn encrypted(&self, host: &str, port: u16) -> anyhow::Result<Box<dyn Wire>> {
        let bare = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name =
            ServerName::try_from(bare).with_context(|| format!("{host:?} is no host name"))?;
        let stream = tcp(host, port).await?;
        let connector = TlsConnector::from(self.config.clone());
        let stream = timeout(CONNECT_MAX, connector.connect(name, stream)).await;
        let stream = stream
            .map_err(|_| anyhow::anyhow!("no answer in time"))
            .and_then(|s| Ok(s?));
        Ok(Box::new(
            stream.with_context(|| format!("TLS with {host} port {port}"))?,
        ))
    }
}

async fn tcp(host: &str, port: u16) -> anyhow::Result<TcpStream> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let connected = timeout(CONNECT_MAX, TcpStream::connect((bare, port))).await;
    let stream = connected
        .map_err(|_| anyhow::anyhow!("no answer in time"))
        .and_then(|s| Ok(s?));
    let stream = stream.with_context(|| format!("{host} port {port}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The ways to try, in this order.
fn routes(options: &Options) -> Vec<Route> {
    let host = options
        .server
        .clone()
        .unwrap_or_else(|| "127.0.0.1".to_owned());
    let is_here = host == "127.0.0.1";
    let mut routes = Vec::new();
    if is_here && options.port.is_none() {
        routes.push(Route::Socket(options.socket.clone()));
    }
    // Within one host nothing is encrypted, unless a certificate is asked for.
    let asked = options.fingerprint.is_some() || options.ca_file.is_some();
    routes.push(match options.encrypt && (!is_here || asked) {
        true => Route::Encrypted {
            host,
            port: options.port.unwrap_or(443),
        },
        false => Route::Plain {
            host,
            port: options.port.unwrap_or(80),
        },
    });
    routes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Debug;

    #[test]
    fn this_host_is_tried_by_its_socket_and_others_are_encrypted() {
        let options = |server: Option<&str>, port, encrypt, fingerprint: Option<&str>| Options {
            server: server.map(str::to_owned),
            port,
            encrypt,
            socket: "/s".into(),
            fingerprint: fingerprint.map(str::to_owned),
            ca_file: None,
            debug: Debug::Off,
            traceparent: None,
            args: vec![],
        };
        let shown = |options: &Options| format!("{:?}", routes(options));
        for (options, expected) in [
            (
                options(None, None, true, None),
                r#"[Socket("/s"), Plain { host: "127.0.0.1", port: 80 }]"#,
            ),
            (
                options(Some("127.0.0.1"), Some(81), true, None),
                r#"[Plain { host: "127.0.0.1", port: 81 }]"#,
            ),
            (
                options(None, Some(4), true, Some("aa")),
                r#"[Encrypted { host: "127.0.0.1", port: 4 }]"#,
            ),
            (
                options(Some("h"), None, true, None),
                r#"[Encrypted { host: "h", port: 443 }]"#,
            ),
            (
                options(Some("h"), None, false, None),
                r#"[Plain { host: "h", port: 80 }]"#,
            ),
        ] {
            assert_eq!(shown(&options), expected);
        }
    }
}
