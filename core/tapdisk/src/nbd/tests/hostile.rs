//! Clients that are wrong, slow, greedy or gone.

use super::*;
use proptest::prelude::*;

#[test]
fn wrong_client_flags_end_the_session() {
    for flags in [4_u32, 5, 7, 1 << 16, u32::MAX] {
        let mut wire = Wire::new(false);
        wire.send(&flags.to_be_bytes());
        assert!(wire.session.is_finished(), "flags {flags:#x}");
    }
}

#[test]
fn a_wrong_option_magic_ends_the_session() {
    let mut wire = Wire::new(false);
    wire.send(&[&3_u32.to_be_bytes()[..], b"IHAVEOPX\0\0\0\x03\0\0\0\0"].concat());
    assert!(wire.session.is_finished());
}

#[test]
fn requests_before_the_export_is_chosen_end_the_session() {
    let mut wire = Wire::new(false);
    wire.send(&3_u32.to_be_bytes());
    let mut jobs = Vec::new();
    wire.offer(&request(0, 0, 1, 0, 512), &mut jobs);
    assert_eq!(jobs, []);
    assert!(wire.session.is_finished());
}

#[test]
fn a_wrong_request_magic_ends_the_session_without_a_job() {
    let mut wire = Wire::greeted(false, false);
    let mut script = request(0, 0, 1, 0, 512);
    script[0] ^= 1;
    assert_eq!(wire.send(&script), []);
    assert!(wire.session.is_finished());
}

/// What is wrong, the request's bytes, the error number.
fn refused() -> Vec<(&'static str, Vec<u8>, u32)> {
    let write = |flags: u16, offset: u64, length: u32| {
        [
            request(flags, 1, 5, offset, length),
            vec![0x55; length as usize],
        ]
        .concat()
    };
    vec![
        ("unknown command", request(0, 8, 5, 0, 0), 22),
        (
            "unknown command with all bits",
            request(u16::MAX, u16::MAX, 5, 0, 0),
            22,
        ),
        ("CACHE with a flag", request(8, 5, 5, 0, 512), 22),
        (
            "CACHE over 32 MiB",
            request(0, 5, 5, 0, (32 << 20) + 512),
            22,
        ),
        ("RESIZE", request(0, 8, 5, 0, 512), 22),
        (
            "PAYLOAD_LEN without extended headers",
            request(32, 6, 5, 0, 512),
            22,
        ),
        ("unknown flag", request(1 << 5, 0, 5, 0, 512), 22),
        ("NO_HOLE on a read", request(2, 0, 5, 0, 512), 22),
        ("FAST_ZERO on a trim", request(16, 4, 5, 0, 512), 22),
        ("unaligned offset", request(0, 0, 5, 100, 512), 22),
        ("unaligned length", request(0, 0, 5, 0, 700), 22),
        ("unaligned trim", request(0, 4, 5, 1, 512), 22),
        ("unaligned status", request(0, 7, 5, 0, 1), 22),
        ("unaligned write", write(0, 0, 700), 22),
        ("unaligned write of one byte", write(0, 0, 1), 22),
        ("empty read", request(0, 0, 5, 0, 0), 22),
        ("empty write", request(0, 1, 5, 0, 0), 22),
        ("read past the end", request(0, 0, 5, SIZE - 512, 1024), 22),
        ("read at the end", request(0, 0, 5, SIZE, 512), 22),
        ("read that wraps", request(0, 0, 5, u64::MAX - 511, 512), 22),
        (
            "read over 32 MiB",
            request(0, 0, 5, 0, (32 << 20) + 512),
            22,
        ),
        (
            "status past the end",
            request(0, 7, 5, 0, (1 << 20) + 512),
            22,
        ),
        ("write past the end", write(1, SIZE - 512, 1024), 28),
        ("write that wraps", write(0, u64::MAX - 511, 512), 22),
        ("zeroes past the end", request(0, 6, 5, SIZE, 512), 28),
        ("trim past the end", request(0, 4, 5, SIZE, 512), 22),
        ("flush with a range", request(0, 3, 5, 0, 512), 22),
        ("write over 32 MiB", write(0, 0, (32 << 20) + 512), 22),
    ]
}

#[test]
fn refused_requests_keep_the_stream_in_step() {
    for (name, script, number) in refused() {
        let mut wire = Wire::greeted(false, false);
        let script = [script, request(0, 3, 6, 0, 0)].concat();
        let jobs = wire.send(&script);
        assert_eq!(whats(&jobs), ["Flush"], "{name}");
        wire.session.answer(jobs[0].slot, Answer::Done);
        let expected = [simple_reply(number, 5), simple_reply(0, 6)].concat();
        assert_eq!(wire.read(), expected, "{name}");
    }
}

#[test]
fn block_status_that_was_not_agreed_on_is_refused() {
    let mut wire = Wire::greeted(false, false);
    assert_eq!(wire.send(&request(0, 7, 1, 0, 512)), []);
    assert_eq!(wire.read(), simple_reply(22, 1));
}

#[test]
fn a_read_only_export_refuses_every_write_and_takes_its_payload() {
    let mut wire = Wire::greeted(true, false);
    let script = [
        [request(0, 1, 1, 0, 1024), vec![1; 1024]].concat(),
        request(0, 4, 2, 0, 512),
        request(0, 6, 3, 0, 512),
        request(0, 3, 4, 0, 0),
    ];
    let jobs = wire.send(&script.concat());
    assert_eq!(whats(&jobs), ["Flush"]);
    let expected = [simple_reply(1, 1), simple_reply(1, 2), simple_reply(1, 3)];
    assert_eq!(wire.read(), expected.concat());
}

#[test]
fn a_client_that_leaves_inside_a_payload_writes_nothing() {
    for sent in [0, 1, 511] {
        let mut wire = Wire::greeted(false, false);
        let script = [request(0, 1, 1, 0, 512), vec![1; sent]].concat();
        assert_eq!(wire.send(&script), []);
        wire.session.lost();
        assert_eq!(wire.session.next_job().map(Done::of), None);
        assert!(wire.session.is_finished(), "after {sent} bytes of payload");
    }
}

#[test]
fn answers_for_a_client_that_left_are_dropped() {
    let mut wire = Wire::greeted(false, false);
    let jobs = wire.send(&[request(0, 0, 1, 0, 512), request(0, 3, 2, 0, 0)].concat());
    wire.session
        .answer(jobs[0].slot, Answer::Data(filled(512, 1)));
    wire.session.lost();
    assert!(!wire.session.is_finished(), "a job is still running");
    wire.session.answer(jobs[1].slot, Answer::Done);
    assert!(wire.session.is_finished() && !wire.session.has_output());
}

#[test]
fn a_client_that_does_not_read_is_held_at_the_limit() {
    let mut wire = Wire::greeted(false, false);
    let mut jobs = Vec::new();
    let flood: Vec<u8> = (0..100_000).flat_map(|n| request(0, 3, n, 0, 0)).collect();
    let taken = wire.offer(&flood, &mut jobs);
    assert_eq!(jobs.len(), IN_FLIGHT_MAX);
    assert!(
        taken < 128 << 10,
        "{taken} bytes taken from a client that does not read"
    );
    for job in &jobs {
        wire.session.answer(job.slot, Answer::Done);
    }
    let rest = &flood[taken..];
    assert_eq!(wire.offer(rest, &mut jobs), 0, "unsent replies count");
    let expected: Vec<u8> = (0..128).flat_map(|n| simple_reply(0, n)).collect();
    assert_eq!(wire.read(), expected);
    assert!(wire.offer(rest, &mut jobs) > 0, "and it goes on");
    assert_eq!(jobs.len(), 2 * IN_FLIGHT_MAX);
}

#[test]
fn a_request_over_the_limit_is_offered_again_until_it_is_taken() {
    for piece in [usize::MAX, 1, 13] {
        let mut wire = Wire::greeted(false, false);
        wire.chunk = piece;
        let flood: Vec<u8> = (0..129).flat_map(|n| request(0, 3, n, 0, 0)).collect();
        let mut jobs = Vec::new();
        let taken = wire.offer(&flood, &mut jobs);
        assert_eq!((taken, jobs.len()), (flood.len() - 1, IN_FLIGHT_MAX));
        assert_eq!(wire.offer(&flood[taken..], &mut jobs), 0, "still full");
        for job in jobs.drain(..) {
            wire.session.answer(job.slot, Answer::Done);
        }
        wire.read();
        assert_eq!(wire.offer(&flood[taken..], &mut jobs), 1);
        assert_eq!(whats(&jobs), ["Flush"]);
    }
}

#[test]
fn refused_requests_are_held_at_the_limit_too() {
    let mut wire = Wire::greeted(false, false);
    let flood: Vec<u8> = (0..100_000).flat_map(|n| request(0, 99, n, 0, 0)).collect();
    wire.offer(&flood, &mut Vec::new());
    assert_eq!(wire.session.in_flight(), IN_FLIGHT_MAX);
    assert_eq!(wire.read().len(), IN_FLIGHT_MAX * 16);
}

#[test]
fn large_requests_are_held_by_their_bytes() {
    let export = Export {
        name: String::new(),
        size_bytes: 1 << 40,
        read_only: false,
        tls: None,
    };
    let mut wire = Wire {
        session: Session::new(export),
        ..Wire::greeted(false, false)
    };
    wire.send(&[&3_u32.to_be_bytes()[..], &option(7, &go("", &[]))].concat());
    wire.read();
    let mut jobs = Vec::new();
    let reads: Vec<u8> = (0..8).flat_map(|n| request(0, 0, n, 0, 32 << 20)).collect();
    let taken = wire.offer(&reads, &mut jobs);
    assert_eq!(jobs.len(), 2, "64 MiB are two requests of 32 MiB");
    wire.session.answer(
        jobs[0].slot,
        Answer::Failed(Failure {
            errno: Errno::Io,
            message: String::new(),
        }),
    );
    wire.read();
    wire.offer(&reads[taken..], &mut jobs);
    assert_eq!(jobs.len(), 3, "and it goes on");
}

#[test]
fn requests_are_over_when_their_replies_come_back_or_the_client_is_lost() {
    for lost in [false, true] {
        let mut wire = Wire::greeted(false, true);
        let jobs = wire.send(&[request(0, 0, 1, 0, 512), request(0, 3, 2, 0, 0)].concat());
        wire.session
            .answer(jobs[0].slot, Answer::Data(filled(512, 9)));
        let first = wire.session.take_output();
        wire.session.answer(jobs[1].slot, Answer::Done);
        assert_eq!((first.len(), wire.session.in_flight()), (1, 2));
        if lost {
            wire.session.lost();
            assert!(wire.session.is_finished(), "nobody waits for the rest");
        }
        wire.session.sent(first, &mut wire.pool);
        assert_eq!(wire.session.in_flight(), usize::from(!lost));
        assert_eq!(wire.session.has_output(), !lost);
    }
}

#[test]
fn a_long_payload_whose_client_leaves_gives_its_buffer_back_and_writes_nothing() {
    let mut wire = Wire::greeted(false, false);
    assert_eq!(wire.send(&request(0, 1, 1, 0, 512 << 10)), []);
    let (buffer, filled) = wire.session.lend_payload().expect("a long payload");
    assert_eq!((buffer.len(), filled), (512 << 10, 0));
    assert!(wire.session.lend_payload().is_none(), "it is lent already");
    assert_eq!(wire.session.receive(&[1; 10], &mut wire.pool), 0);
    wire.session.payload_back(buffer, 1000, &mut wire.pool);
    let (buffer, filled) = wire.session.lend_payload().expect("not full yet");
    assert_eq!(filled, 1000);
    wire.session.lost();
    wire.session.payload_back(buffer, 512 << 10, &mut wire.pool);
    assert!(wire.session.next_job().is_none() && wire.session.is_finished());
}

proptest! {
    /// Whatever a client sends, in whatever pieces: no panic, every job inside the disk, the limits
    /// hold, and all requests are over in the end.
    #[test]
    fn random_bytes_never_break_a_session(
        // No greeting yet, or what the handshake settled on.
        style in 0..4_u8,
        read_only: bool,
        script in prop::collection::vec(
            prop_oneof![
                (any::<u32>(), prop::collection::vec(any::<u8>(), 0..64)).prop_map(|(n, d)| option(n % 12, &d)),
                (0..64_u16, 0..9_u16, any::<u64>(), 0..2100_u64, 0..9_u32)
                    .prop_map(|(f, c, k, o, l)| [request(f, c, k, o * 512, l * 512), vec![3; l as usize * 512]].concat()),
                (0..64_u16, 0..9_u16, any::<u64>(), 0..2100_u64, prop_oneof![0..9_u64, any::<u64>()])
                    .prop_map(|(f, c, k, o, l)| [wide(f, c, k, o * 512, l), vec![3; l.min(4096) as usize]].concat()),
                prop::collection::vec(any::<u8>(), 0..64),
            ],
            0..40,
        ),
        piece in 1..600_usize,
    ) {
        let mut wire = match style {
            0 => Wire::new(read_only),
            1 => Wire::greeted(read_only, false),
            2 => Wire::greeted(read_only, true),
            _ => Wire::extended(read_only),
        };
        wire.chunk = piece;
        for bytes in &script {
            let mut offered = &bytes[..];
            while !offered.is_empty() && !wire.session.is_ending() {
                let mut jobs = Vec::new();
                let taken = wire.offer(offered, &mut jobs);
                offered = &offered[taken..];
                prop_assert!(wire.session.in_flight() <= IN_FLIGHT_MAX);
                for job in jobs {
                    prop_assert!(!read_only || !job.what.starts_with("write "), "{}", job.what);
                    wire.session.answer(job.slot, Answer::Done);
                }
                wire.read();
            }
        }
        wire.session.lost();
        prop_assert!(wire.session.is_finished());
    }
}
