//! The certificate of the host: one PEM file with key and certificate, made where there is none.

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The address cannot be bound.
    #[error("cannot bind the TLS socket")]
    Bind(#[source] io::Error),
    /// The file cannot be read or written.
    #[error("cannot use {0}")]
    File(PathBuf, #[source] io::Error),
    /// The file holds no usable key and certificate.
    #[error("{0} holds no usable key and certificate: {1}")]
    Content(PathBuf, String),
}

/// Reads, or makes, the certificate and prepares to serve with it.
pub(super) fn acceptor(state_dir: &Path, names: &[String]) -> Result<TlsAcceptor, TlsError> {
    let path = state_dir.join("xapi-ssl.pem");
    let pem = match std::fs::read(&path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path, names)?,
        Err(error) => return Err(TlsError::File(path, error)),
    };
    let bad = |error: &dyn std::fmt::Display| TlsError::Content(path.clone(), error.to_string());
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| bad(&error))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| bad(&error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn make(path: &Path, names: &[String]) -> Result<Vec<u8>, TlsError> {
    let bad = |error: rcgen::Error| TlsError::Content(path.to_owned(), error.to_string());
    let made = rcgen::generate_simple_self_signed(names.to_vec()).map_err(bad)?;
    let pem = made.signing_key.serialize_pem() + &made.cert.pem();
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(pem.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| TlsError::File(path.to_owned(), error))?;
    tracing::info!(path = %path.display(), "made a self-signed certificate");
    Ok(pem.into_bytes())
}
