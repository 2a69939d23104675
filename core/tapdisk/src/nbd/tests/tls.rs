//! TLS: what is served before it, under it, and to those who get it wrong.

use super::certificates::Authority;
use super::*;
use datapath::TlsPolicy;
use proptest::prelude::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::{Read, Write};
use std::sync::Arc;

const UNSUP: u32 = (1 << 31) + 1;
const POLICY: u32 = (1 << 31) + 2;
const INVALID: u32 = (1 << 31) + 3;
const TLS_REQD: u32 = (1 << 31) + 5;

/// A session of an export with TLS.
fn server(tls: &datapath::Tls) -> Wire {
    let export = Export {
        name: "disk".to_owned(),
        size_bytes: SIZE,
        read_only: false,
        tls: Some(Tls::new(tls).unwrap()),
    };
    let mut wire = Wire {
        session: Session::new(export),
        ..Wire::new(false)
    };
    wire.read();
    wire.send(&3_u32.to_be_bytes());
    wire
}

fn client(authority: &Authority, own: Option<&Authority>) -> Peer {
    let mut roots = RootCertStore::empty();
    let pem = authority.certificate_pem.as_bytes();
    roots
        .add(CertificateDer::from_pem_slice(pem).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (certificate, key) = own.vouch("client");
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(vec![certificate], key)
                .unwrap()
        }
    };
    let name = ServerName::try_from("localhost").unwrap();
    Peer {
        tls: ClientConnection::new(Arc::new(config), name).unwrap(),
        heard: Vec::new(),
        closed: false,
    }
}

/// The other end, by rustls too; QEMU and libnbd are met where there are sockets.
struct Peer {
    tls: ClientConnection,
    heard: Vec<u8>,
    /// TLS ended in order.
    closed: bool,
}

impl Peer {
    fn take(&mut self, mut cipher: &[u8]) -> Result<(), rustls::Error> {
        while !cipher.is_empty() {
            self.tls.read_tls(&mut cipher).unwrap();
            let state = self.tls.process_new_packets()?;
            self.closed |= state.peer_has_closed();
            let start = self.heard.len();
            self.heard
                .resize(start + state.plaintext_bytes_to_read(), 0);
            self.tls
                .reader()
                .read_exact(&mut self.heard[start..])
                .unwrap();
        }
        Ok(())
    }
}

/// Moves cipher bytes both ways until nothing moves; returns the jobs.
fn talk(wire: &mut Wire, client: &mut Peer) -> Result<Vec<Done>, rustls::Error> {
    let mut jobs = Vec::new();
    loop {
        let mut bytes = Vec::new();
        while client.tls.wants_write() {
            client.tls.write_tls(&mut bytes).unwrap();
        }
        wire.offer(&bytes, &mut jobs);
        let answer = wire.read();
        client.take(&answer)?;
        if bytes.is_empty() && answer.is_empty() {
            return Ok(jobs);
        }
    }
}

fn say(wire: &mut Wire, client: &mut Peer, bytes: &[u8]) -> Result<Vec<Done>, rustls::Error> {
    let mut jobs = Vec::new();
    for part in bytes.chunks(32 << 10) {
        client.tls.writer().write_all(part).unwrap();
        jobs.extend(talk(wire, client)?);
    }
    Ok(jobs)
}

fn hear(client: &mut Peer) -> Vec<u8> {
    std::mem::take(&mut client.heard)
}

/// A client that is past `STARTTLS` and the TLS handshake.
fn secured(policy: TlsPolicy) -> (Wire, Peer) {
    let authority = Authority::new();
    let mut wire = server(&authority.tls(policy, None));
    wire.send(&option(5, &[]));
    assert_eq!(wire.read(), option_reply(5, 1, &[]));
    let mut client = client(&authority, None);
    talk(&mut wire, &mut client).unwrap();
    assert!(!client.tls.is_handshaking());
    (wire, client)
}

#[test]
fn an_export_that_requires_tls_answers_nothing_before_it() {
    let authority = Authority::new();
    let tls = authority.tls(TlsPolicy::Require, None);
    let mut wire = server(&tls);
    let text = b"this export is served under TLS";
    for (number, data) in [
        (3, vec![]),
        (6, go("disk", &[])),
        (6, go("other", &[])),
        (7, go("disk", &[])),
        (8, vec![]),
        (9, context_query("disk", &[])),
        (10, context_query("disk", &["base:allocation"])),
        (11, vec![]),
        (99, vec![1, 2, 3]),
    ] {
        wire.send(&option(number, &data));
        assert_eq!(
            wire.read(),
            option_reply(number, TLS_REQD, text),
            "{number}"
        );
    }
    wire.send(&option(5, &[0]));
    let why = b"the option is longer than its content";
    assert_eq!(wire.read(), option_reply(5, INVALID, why));
    wire.send(&option(2, &[]));
    assert_eq!(wire.read(), option_reply(2, 1, &[]));
    assert!(wire.session.is_finished());

    let mut wire = server(&tls);
    wire.send(&option(1, b"disk"));
    assert!(
        wire.read().is_empty() && wire.session.is_finished(),
        "EXPORT_NAME"
    );
}

#[test]
fn an_export_that_allows_tls_is_served_without_it_too() {
    let mut wire = server(&Authority::new().tls(TlsPolicy::Allow, None));
    wire.send(&option(7, &go("disk", &[])));
    assert!(wire.session.is_greeted() && !wire.session.is_ending());
}

#[test]
fn an_export_without_tls_says_so() {
    let mut wire = Wire::new(false);
    wire.read();
    wire.send(&3_u32.to_be_bytes());
    wire.send(&option(5, &[]));
    let why = b"this export is served without TLS";
    assert_eq!(wire.read(), option_reply(5, POLICY, why));
    wire.send(&option(4, &[]));
    assert_eq!(wire.read(), option_reply(4, UNSUP, b"unknown option"));
}

#[test]
fn under_tls_everything_is_as_without_it() {
    for policy in [TlsPolicy::Allow, TlsPolicy::Require] {
        for piece in [usize::MAX, 1, 999] {
            let (mut wire, mut client) = secured(policy);
            wire.chunk = piece;
            say(&mut wire, &mut client, &option(5, &[])).unwrap();
            let again = option_reply(5, INVALID, b"TLS is there already");
            assert_eq!(hear(&mut client), again);
            let script = [option(8, &[]), option(7, &go("disk", &[]))].concat();
            say(&mut wire, &mut client, &script).unwrap();
            assert!(wire.session.is_greeted());
            hear(&mut client);
            let script = [
                [request(0, 1, 1, 512, 100 << 10), vec![7; 100 << 10]].concat(),
                request(0, 0, 2, 0, 200 << 10),
                request(0, 3, 3, 0, 0),
            ];
            let jobs = say(&mut wire, &mut client, &script.concat()).unwrap();
            let expected = [
                "write 512 102400x07 fua=false",
                "Read { offset: 0, length: 204800 }",
                "Flush",
            ];
            assert_eq!(whats(&jobs), expected);
            wire.session.answer(jobs[2].slot, Answer::Done);
            wire.session
                .answer(jobs[1].slot, Answer::Data(filled(200 << 10, 9)));
            wire.session.answer(jobs[0].slot, Answer::Done);
            talk(&mut wire, &mut client).unwrap();
            let heard = hear(&mut client);
            let data = [&0_u64.to_be_bytes()[..], &vec![9; 200 << 10]].concat();
            let replies = [simple_reply(0, 3), chunk(1, 2, &data), simple_reply(0, 1)];
            assert!(heard == replies.concat());
            assert_eq!(wire.session.in_flight(), 0);
            // An end in order, on both levels.
            say(&mut wire, &mut client, &request(0, 2, 4, 0, 0)).unwrap();
            assert!(wire.session.is_finished());
            assert!(client.closed, "close_notify");
        }
    }
}

#[test]
fn what_was_settled_in_the_clear_is_void_under_tls() {
    let authority = Authority::new();
    let mut wire = server(&authority.tls(TlsPolicy::Allow, None));
    wire.send(&option(11, &[]));
    wire.send(&option(10, &context_query("disk", &["base:allocation"])));
    wire.read();
    wire.send(&option(5, &[]));
    wire.read();
    let mut client = client(&authority, None);
    talk(&mut wire, &mut client).unwrap();
    // With extended headers this would drop the session, and a status would be answered.
    let script = [option(1, b"disk"), request(0, 7, 1, 0, 512)].concat();
    say(&mut wire, &mut client, &script).unwrap();
    let heard = hear(&mut client);
    assert_eq!(heard[..8], SIZE.to_be_bytes());
    assert_eq!(heard[10..], simple_reply(22, 1));
}

#[test]
fn what_follows_starttls_in_the_clear_is_never_taken() {
    let authority = Authority::new();
    for injected in [
        option(7, &go("disk", &[])),
        option(8, &[]),
        vec![0x16],
        b"I".to_vec(),
    ] {
        for policy in [TlsPolicy::Allow, TlsPolicy::Require] {
            let mut wire = server(&authority.tls(policy, None));
            let mut jobs = Vec::new();
            wire.offer(&[option(5, &[]), injected.clone()].concat(), &mut jobs);
            assert!(wire.session.is_finished() && !wire.session.has_output());
            assert_eq!(jobs, []);
        }
    }
    // A moment later it is no TLS, which is said, and then it is over.
    let mut wire = server(&authority.tls(TlsPolicy::Allow, None));
    wire.send(&option(5, &[]));
    let script = [option(7, &go("disk", &[])), request(0, 3, 1, 0, 0)].concat();
    let mut jobs = Vec::new();
    wire.offer(&script, &mut jobs);
    assert_eq!(jobs, []);
    assert!(!wire.session.is_greeted());
    let said = wire.read();
    let acknowledged = option_reply(5, 1, &[]);
    assert_eq!(said[..20], acknowledged);
    assert_eq!(said[20], 0x15, "an alert and nothing else: {said:?}");
    assert!(wire.session.is_finished());
}

#[test]
fn clients_are_let_in_by_their_certificate() {
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    for (own, is_let_in) in [
        (Some(&clients), true),
        (Some(&others), false),
        (Some(&authority), false),
        (None, false),
    ] {
        let mut wire = server(&authority.tls(TlsPolicy::Require, Some(&clients)));
        wire.send(&option(5, &[]));
        wire.read();
        let mut client = client(&authority, own);
        let script = option(7, &go("disk", &[]));
        let said = talk(&mut wire, &mut client)
            .and_then(|_| say(&mut wire, &mut client, &script))
            .is_ok();
        assert_eq!(said && wire.session.is_greeted(), is_let_in);
        assert_eq!(wire.session.is_finished(), !is_let_in);
    }
}

#[test]
fn certificates_and_keys_that_are_none_are_refused_without_their_text() {
    let authority = Authority::new();
    let good = authority.tls(TlsPolicy::Require, None);
    let other_key = datapath::Secret::new(authority.vouch("x").1);
    let torn = good.key_pem.reveal().replace("PRIVATE", "PRIVATE\nhush");
    let secret = |text: &str| datapath::Secret::new(text);
    let cases = [
        ("no certificate", String::new(), good.key_pem.clone(), None),
        ("no PEM", "hush".to_owned(), good.key_pem.clone(), None),
        (
            "a torn certificate",
            good.certificates_pem.replace('M', "!"),
            good.key_pem.clone(),
            None,
        ),
        ("no key", good.certificates_pem.clone(), secret(""), None),
        (
            "a torn key",
            good.certificates_pem.clone(),
            secret(&torn),
            None,
        ),
        (
            "another key",
            good.certificates_pem.clone(),
            other_key,
            None,
        ),
        (
            "no authority",
            good.certificates_pem.clone(),
            good.key_pem.clone(),
            Some("hush".to_owned()),
        ),
    ];
    for (name, certificates_pem, key_pem, client_ca_pem) in cases {
        let tls = datapath::Tls {
            policy: TlsPolicy::Require,
            certificates_pem,
            key_pem,
            client_ca_pem,
        };
        let error = Tls::new(&tls).unwrap_err();
        assert_eq!(error.kind, datapath::ErrorKind::Unsupported, "{name}");
        assert!(!error.message.contains("hush"), "{name}: {error}");
    }
}

#[test]
fn a_peer_that_does_not_read_is_held_under_tls_too() {
    let (mut wire, mut client) = secured(TlsPolicy::Require);
    say(&mut wire, &mut client, &option(7, &go("disk", &[]))).unwrap();
    hear(&mut client);
    let mut cipher = Vec::new();
    for n in 0..2000_u64 {
        client
            .tls
            .writer()
            .write_all(&request(0, 3, n, 0, 0))
            .unwrap();
        client.tls.write_tls(&mut cipher).unwrap();
    }
    let mut jobs = Vec::new();
    let taken = wire.offer(&cipher, &mut jobs);
    assert_eq!(jobs.len(), IN_FLIGHT_MAX);
    assert!(taken < cipher.len());
    // And it goes on where it was, to the last request.
    let mut rest = &cipher[taken..];
    let mut answered = 0;
    while !jobs.is_empty() {
        for job in jobs.drain(..) {
            wire.session.answer(job.slot, Answer::Done);
            answered += 1;
        }
        wire.read();
        let taken = wire.offer(rest, &mut jobs);
        rest = &rest[taken..];
    }
    assert_eq!((answered, rest.len()), (2000, 0));
}

proptest! {
    /// Whatever comes in place of TLS, or bent under it: no panic and no job.
    #[test]
    fn noise_under_tls_is_never_a_request(
        noise in prop::collection::vec(any::<u8>(), 1..300),
        at in 0..400_usize,
        early: bool,
        piece in 1..300_usize,
    ) {
        let authority = Authority::new();
        let mut wire = server(&authority.tls(TlsPolicy::Require, None));
        wire.send(&option(5, &[]));
        wire.read();
        let mut client = client(&authority, None);
        if !early {
            talk(&mut wire, &mut client).unwrap();
        }
        wire.chunk = piece;
        let script = [option(7, &go("disk", &[])), request(0, 3, 1, 0, 0)].concat();
        client.tls.writer().write_all(&script).unwrap();
        let mut cipher = Vec::new();
        while client.tls.wants_write() {
            client.tls.write_tls(&mut cipher).unwrap();
        }
        let at = at.min(cipher.len());
        let end = (at + noise.len()).min(cipher.len());
        prop_assume!(cipher[at..end] != noise[..end - at]);
        cipher.splice(at..end, noise);
        let mut jobs = Vec::new();
        wire.offer(&cipher, &mut jobs);
        // What came before the noise may be whole.
        prop_assert!(jobs.len() <= 1);
        prop_assert!(jobs.is_empty() || !early);
        wire.session.lost();
        for job in jobs {
            wire.session.answer(job.slot, Answer::Done);
        }
        prop_assert!(wire.session.is_finished());
    }
}
