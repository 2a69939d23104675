//! Certificates of a test: an authority, and who it vouches for. Used here and by the unit tests.

use datapath::{Secret, Tls, TlsPolicy};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// An authority.
pub(crate) struct Authority {
    pub(crate) certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        // GnuTLS finds an authority by its name.
        let name = uuid::Uuid::new_v4().to_string();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self {
            certificate_pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for `name` and its key, as PEM.
    pub(crate) fn vouch(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// What a server on `localhost` needs; with `clients` it lets in those that authority vouches
    /// for.
    pub(crate) fn tls(&self, policy: TlsPolicy, clients: Option<&Self>) -> Tls {
        let (certificates_pem, key_pem) = self.vouch("localhost");
        Tls {
            policy,
            certificates_pem,
            key_pem: Secret::new(key_pem),
            client_ca_pem: clients.map(|authority| authority.certificate_pem.clone()),
        }
    }
}
