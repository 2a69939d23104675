//! Which certificates are accepted: all, one by its fingerprint, or those that a file vouches for.
//!
//! All is the default, as in the existing client, for hosts make their own certificates and no
//! authority knows them. Even then the server must prove that it has the key of its certificate.

use anyhow::{Context, bail, ensure};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The certificate that was met.
#[derive(Debug, Default)]
pub(crate) struct Seen(OnceLock<String>);

impl Seen {
    /// Its SHA-256 in hexadecimal digits, as `--fingerprint` takes it.
    pub(crate) fn fingerprint(&self) -> &str {
        self.0.get().map_or("not seen yet", String::as_str)
    }
}

/// Makes the TLS configuration, and where the fingerprint of the certificate is noted.
///
/// # Errors
/// When the fingerprint or the file is no use.
pub(crate) fn config(
    fingerprint: Option<&str>,
    ca_file: Option<&Path>,
) -> anyhow::Result<(Arc<ClientConfig>, Arc<Seen>)> {
    let provider = Arc::new(ring::default_provider());
    let seen = Arc::new(Seen::default());
    let pinned = fingerprint.map(plain_fingerprint).transpose()?;
    let by_authority = ca_file
        .map(|path| authorities(path, provider.clone()))
        .transpose()?;
    let verifier = Verifier {
        provider: provider.clone(),
        pinned,
        by_authority,
        seen: seen.clone(),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok((Arc::new(config), seen))
}

/// 64 hexadecimal digits, whatever was between them.
fn plain_fingerprint(text: &str) -> anyhow::Result<String> {
    let plain: String = text.chars().filter(|c| !matches!(c, ':' | ' ')).collect();
    let plain = plain.to_ascii_lowercase();
    let is_sha256 = plain.len() == 64 && plain.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(
        is_sha256,
        "the fingerprint {text:?} is no SHA-256 of 64 hexadecimal digits"
    );
    Ok(plain)
}

fn authorities(
    path: &Path,
    provider: Arc<CryptoProvider>,
) -> anyhow::Result<Arc<WebPkiServerVerifier>> {
    let read = || format!("cannot read certificates from {}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).with_context(read)? {
        roots
            .add(certificate.with_context(read)?)
            .with_context(read)?;
    }
    if roots.is_empty() {
        bail!("{} has no certificates", path.display());
    }
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
}

fn fingerprint_of(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate)
        .iter()
        .fold(String::new(), |mut text, byte| {
            // Writing to a String does not fail.
            _ = write!(text, "{byte:02x}");
            text
        })
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    pinned: Option<String>,
    by_authority: Option<Arc<WebPkiServerVerifier>>,
    seen: Arc<Seen>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let met = fingerprint_of(certificate);
        self.seen.0.get_or_init(|| met.clone());
        if self.pinned.as_ref().is_some_and(|pinned| *pinned != met) {
            let problem = format!("the server has another certificate, with fingerprint {met}");
            return Err(rustls::Error::General(problem));
        }

        if let Some(by_authority) = &self.by_authority {
            return by_authority.verify_server_cert(certificate, intermediates, name, ocsp, now);
        }

        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_taken_with_and_without_colons() {
        let digits = "0123456789ABCDEF".repeat(4);
        let colons = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).unwrap());
        let colons = colons.collect::<Vec<_>>().join(":");
        assert_eq!(plain_fingerprint(&colons).unwrap(), digits.to_lowercase());
        for bad in ["", "aa", &digits[1..], &digits.replace('0', "g")] {
            assert!(plain_fingerprint(bad).is_err(), "{bad:?}");
        }
    }
}
