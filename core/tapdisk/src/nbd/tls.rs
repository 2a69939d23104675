//! TLS under a session: cipher bytes in, cipher bytes out.
//!
//! ```text
//!  transport ── receive ──> Layer ── decrypted ──> session
//!            <─ output ──── Layer <─ pieces ────── session
//! ```
//!
//! TLS 1.2 and 1.3 by rustls with X.509 certificates (it has no pre-shared keys), no resumption and
//! no early data, so that every session stands for itself. What a client said before TLS began does
//! not count: bytes that follow `STARTTLS` before its reply is sent end the session.

use super::session::Session as Clear;
use crate::frontend::Buffers;
use datapath::protocol::{self, Error, ErrorKind, TlsPolicy};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::fmt;
use std::io::{IoSlice, Read, Write};
use std::sync::Arc;
use uring::{Body, Piece};

/// Most certificates of a chain or of a list of authorities.
const CERTIFICATES_MAX: usize = 64;

/// Parts given to one record at most.
const PARTS_MAX: usize = 64;

/// The TLS of an export.
#[derive(Clone)]
pub struct Tls {
    is_required: bool,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Takes certificates and key over.
    ///
    /// # Errors
    /// `Unsupported` when they are none or do not belong together. No text of theirs is in it.
    pub fn new(tls: &protocol::Tls) -> Result<Self, Error> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| refused("the protocol", e))?;
        let builder = match &tls.client_ca_pem {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("an authority", pem)? {
                    let added = roots.add(certificate);
                    added.map_err(|e| refused("an authority", e))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = verifier
                    .build()
                    .map_err(|e| refused("the authorities", e))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates("the certificate", &tls.certificates_pem)?;
        // The parser's errors tell a part of what they could not read.
        let key = PrivateKeyDer::from_pem_slice(tls.key_pem.reveal().as_bytes())
            .map_err(|_| refused("the key", "no private key in PEM"))?;
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|e| refused("certificate and key", e))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            is_required: tls.policy == TlsPolicy::Require,
            config: Arc::new(config),
        })
    }

    /// Whether nothing is served without it.
    pub(super) fn is_required(&self) -> bool {
        self.is_required
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls(required: {})", self.is_required)
    }
}

fn certificates(what: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(CERTIFICATES_MAX)
        .collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|_| refused(what, "no PEM"))?;
    if found.is_empty() {
        return Err(refused(what, "no certificate in the PEM"));
    }
    Ok(found)
}

fn refused(what: &str, why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Unsupported, format!("TLS: {what}: {why}"))
}

/// TLS broke off; the alert that says why is among the output.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// One connection's TLS.
pub(super) struct Layer {
    connection: ServerConnection,
    /// What was decrypted, and how much of it the session took.
    clear: Vec<u8>,
    taken: usize,
    /// Bytes that were decrypted and not yet told to the transport as taken: one, while the session
    /// does not take everything, so that the transport comes back.
    ahead: usize,
    peer_closed: bool,
    /// To be sent.
    cipher: Vec<u8>,
    /// The session's pieces whose cipher is on its way.
    sending: Option<Vec<Piece>>,
    said_farewell: bool,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layer({} bytes to send)", self.cipher.len())
    }
}

impl Layer {
    /// Begins; what is `unsent` still goes out in the clear.
    pub(super) fn new(tls: &Tls, unsent: Vec<u8>) -> Option<Self> {
        let connection = ServerConnection::new(Arc::clone(&tls.config)).ok()?;
        Some(Self {
            connection,
            clear: Vec::new(),
            taken: 0,
            ahead: 0,
            peer_closed: false,
            cipher: unsent,
            sending: None,
            said_farewell: false,
        })
    }

    /// Takes cipher bytes as [`Clear::receive`] takes clear ones.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        session: &mut Clear,
        pool: &mut impl Buffers,
    ) -> Result<usize, Broken> {
        let mut fed = self.ahead.min(bytes.len());
        loop {
            while let Some(rest) = self.clear.get(self.taken..).filter(|r| !r.is_empty()) {
                match session.receive(rest, pool) {
                    0 => {
                        self.ahead = fed.min(1);
                        return Ok(fed - self.ahead);
                    }
                    count => self.taken += count,
                }
            }
            self.clear.clear();
            self.taken = 0;
            if self.peer_closed {
                session.lost();
            }
            let Some(mut rest) = bytes.get(fed..).filter(|rest| !rest.is_empty()) else {
                self.ahead = 0;
                return Ok(fed);
            };
            match self.connection.read_tls(&mut rest) {
                Ok(count) if count > 0 => fed += count,
                _ => return Err(Broken),
            }
            self.decrypt()?;
        }
    }

    fn decrypt(&mut self) -> Result<(), Broken> {
        let state = self.connection.process_new_packets().map_err(|e| {
            tracing::info!(error = %e, "TLS broke off");
            Broken
        });
        self.collect();
        let state = state?;
        self.peer_closed = state.peer_has_closed();
        self.clear.resize(state.plaintext_bytes_to_read(), 0);
        let read = self.connection.reader().read_exact(&mut self.clear);
        read.map_err(|_| Broken)
    }

    /// Takes what rustls has to send.
    fn collect(&mut self) {
        while self.connection.wants_write() {
            // Memory takes everything.
            if self.connection.write_tls(&mut self.cipher).is_err() {
                return;
            }
        }
    }

    pub(super) fn has_output(&self) -> bool {
        !self.cipher.is_empty()
    }

    /// Makes one piece of the session's.
    pub(super) fn encrypt(&mut self, mut pieces: Vec<Piece>) -> Vec<Piece> {
        let mut sent = 0;
        loop {
            let parts = unsent(&pieces, sent);
            if parts.is_empty() {
                break;
            }
            match self.connection.writer().write_vectored(&parts) {
                Ok(count) if count > 0 => sent += count,
                _ => break,
            }
            self.collect();
        }
        // The cipher is what is kept; twice the data would be too much.
        for piece in &mut pieces {
            piece.body = Body::None;
        }
        self.sending = Some(pieces);
        let cipher = std::mem::take(&mut self.cipher);
        vec![Piece::new(Body::Bytes(cipher), u32::MAX)]
    }

    /// The session's pieces whose cipher came back as sent; `None` for pieces from before TLS.
    pub(super) fn sent(&mut self) -> Option<Vec<Piece>> {
        self.sending.take()
    }

    /// Ends TLS in order, once.
    pub(super) fn say_farewell(&mut self) {
        if !std::mem::replace(&mut self.said_farewell, true) {
            self.connection.send_close_notify();
            self.collect();
        }
    }

    /// Nothing more is sent.
    pub(super) fn discard(&mut self) {
        self.cipher.clear();
        self.sending = None;
        self.said_farewell = true;
    }

    /// Whether everything there was to say is sent.
    pub(super) fn is_silent(&self) -> bool {
        self.said_farewell && self.cipher.is_empty() && self.sending.is_none()
    }
}

/// Parts of the pieces after the first `skip` bytes.
fn unsent(pieces: &[Piece], mut skip: usize) -> Vec<IoSlice<'_>> {
    let parts = pieces.iter().flat_map(Piece::parts).filter_map(|part| {
        let skipped = skip.min(part.len());
        skip -= skipped;
        part.get(skipped..).filter(|rest| !rest.is_empty())
    });
    parts.take(PARTS_MAX).map(IoSlice::new).collect()
}
