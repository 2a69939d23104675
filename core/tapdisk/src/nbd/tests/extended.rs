//! Extended headers: lengths of 64 bits, replies that are always chunks.

use super::*;

/// A session on a disk of 2^62 bytes.
fn huge() -> Wire {
    let mut wire = Wire::extended(false);
    wire.session.set_size(1 << 62);
    wire
}

#[test]
fn each_request_and_reply_has_its_extended_form() {
    let mut wire = Wire::extended(false);
    let script = [
        wide(0, 0, 1, 512, 1024),
        wide(4, 0, 2, 4096, 1024),
        [wide(32, 1, 3, 512, 512), vec![7; 512]].concat(),
        [wide(33, 1, 4, 512, 512), vec![8; 512]].concat(),
        wide(0, 3, 5, 0, 0),
        wide(0, 7, 6, 512, 8192),
        wide(8, 7, 7, 0, 8192),
        wide(0, 5, 8, 512, 512),
        wide(0, 4, 9, 0, 512),
        wide(18, 6, 10, 0, 512),
    ];
    let jobs = wire.send(&script.concat());
    let expected = [
        "Read { offset: 512, length: 1024 }",
        "Read { offset: 4096, length: 1024 }",
        "write 512 512x07 fua=false",
        "write 512 512x08 fua=true",
        "Flush",
        "BlockStatus { offset: 512, length: 8192, one: false }",
        "BlockStatus { offset: 0, length: 8192, one: true }",
        "Read { offset: 512, length: 512 }",
        "Trim { offset: 0, length: 512, fua: false }",
        "WriteZeroes { offset: 0, length: 512, fua: false, no_hole: true, fast_bytes: 512 }",
    ];
    assert_eq!(whats(&jobs), expected);
    let run = |length_bytes, hole, zero| BlockRun {
        length_bytes,
        hole,
        zero,
    };
    let runs = vec![run(4096, false, false), run(u64::MAX / 2, true, true)];
    let failed = Failure {
        errno: Errno::NotSupported,
        message: "slow".to_owned(),
    };
    let answers = [
        Answer::Data(filled(1024, 9)),
        Answer::Data(filled(1024, 0)),
        Answer::Done,
        Answer::Done,
        Answer::Done,
        Answer::Status(runs.clone()),
        Answer::Status(runs),
        Answer::Data(filled(512, 1)),
        Answer::Done,
        Answer::Failed(failed),
    ];
    for (job, answer) in jobs.iter().zip(answers) {
        wire.session.answer(job.slot, answer);
    }
    let extents = |list: &[(u64, u64)]| -> Vec<u8> {
        let count = u32::try_from(list.len()).unwrap().to_be_bytes();
        let pairs = list
            .iter()
            .flat_map(|(l, s)| [l.to_be_bytes(), s.to_be_bytes()].concat());
        [0, 0, 0, 1].into_iter().chain(count).chain(pairs).collect()
    };
    let replies = [
        wide_chunk(
            1,
            1,
            512,
            &[&512_u64.to_be_bytes()[..], &[9; 1024]].concat(),
        ),
        wide_chunk(
            2,
            2,
            4096,
            &[&4096_u64.to_be_bytes()[..], &1024_u32.to_be_bytes()].concat(),
        ),
        wide_chunk(0, 3, 512, &[]),
        wide_chunk(0, 4, 512, &[]),
        wide_chunk(0, 5, 0, &[]),
        wide_chunk(6, 6, 512, &extents(&[(4096, 0), (4096, 3)])),
        wide_chunk(6, 7, 0, &extents(&[(4096, 0)])),
        wide_chunk(0, 8, 512, &[]),
        wide_chunk(0, 9, 0, &[]),
        wide_chunk(1 << 15 | 1, 10, 0, b"\0\0\0\x5f\0\x04slow"),
    ];
    assert_eq!(wire.read(), replies.concat());
    assert_eq!(wire.session.in_flight(), 0);
}

#[test]
fn a_status_of_more_than_4_gib_has_runs_of_more_than_4_gib() {
    let mut wire = huge();
    let jobs = wire.send(&wide(0, 7, 1, 0, 1 << 61));
    assert_eq!(
        whats(&jobs),
        ["BlockStatus { offset: 0, length: 68719476736, one: false }"]
    );
    let run = BlockRun {
        length_bytes: 60 << 30,
        hole: true,
        zero: true,
    };
    wire.session.answer(jobs[0].slot, Answer::Status(vec![run]));
    let body = [
        &[0, 0, 0, 1, 0, 0, 0, 1][..],
        &(60_u64 << 30).to_be_bytes(),
        &3_u64.to_be_bytes(),
    ];
    assert_eq!(wire.read(), wide_chunk(6, 1, 0, &body.concat()));
}

/// Sends a request and lets its jobs work until it is answered; returns their ranges.
fn pieces(wire: &mut Wire, script: &[u8]) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let taken = wire.session.receive(script, &mut wire.pool);
    assert_eq!(taken, script.len());
    loop {
        let Some(job) = wire.session.next_job() else {
            return ranges;
        };
        let (Work::Trim { offset, length, .. } | Work::WriteZeroes { offset, length, .. }) =
            job.work
        else {
            panic!("{job:?}");
        };
        ranges.push((offset, length));
        assert_eq!(wire.session.in_flight(), 1);
        assert!(!wire.session.has_output(), "answered before its end");
        wire.session.answer(job.slot, Answer::Done);
    }
}

#[test]
fn large_changes_are_done_piece_by_piece_and_answered_once() {
    const GIB: u64 = 1 << 30;
    for command in [4, 6] {
        for (length, count) in [(GIB, 1), (GIB + 512, 2), (5 * GIB, 5), (1 << 41, 2048)] {
            let mut wire = huge();
            let ranges = pieces(&mut wire, &wide(1, command, 7, 512, length));
            assert_eq!(ranges.len(), count);
            let mut at = 512;
            for (offset, bytes) in ranges {
                assert_eq!(offset, at);
                assert!((1..=GIB).contains(&bytes));
                at += bytes;
            }
            assert_eq!(at, 512 + length);
            assert_eq!(wire.read(), wide_chunk(0, 7, 512, &[]));
        }
    }
    // And those of 32 bits.
    let mut wire = Wire::greeted(false, false);
    wire.session.set_size(1 << 40);
    let ranges = pieces(&mut wire, &request(0, 6, 7, 0, u32::MAX - 511));
    assert_eq!(ranges.len(), 4);
    assert_eq!(wire.read(), simple_reply(0, 7));
}

#[test]
fn only_the_first_piece_of_a_fast_zero_asks_and_it_asks_about_everything() {
    let mut wire = huge();
    let jobs = wire.send(&wide(16, 6, 1, 0, 3 << 30));
    assert_eq!(
        whats(&jobs),
        [
            "WriteZeroes { offset: 0, length: 1073741824, fua: false, no_hole: false, fast_bytes: 3221225472 }"
        ]
    );
    wire.session.answer(jobs[0].slot, Answer::Done);
    let next = wire.session.next_job().map(Done::of);
    assert_eq!(
        next.unwrap().what,
        "WriteZeroes { offset: 1073741824, length: 1073741824, fua: false, no_hole: false, fast_bytes: 0 }"
    );
}

#[test]
fn a_piece_that_fails_is_the_requests_end() {
    let mut wire = huge();
    let mut jobs = wire.send(&wide(0, 6, 1, 0, 9 << 30));
    wire.session.answer(jobs.remove(0).slot, Answer::Done);
    let second = wire.session.next_job().unwrap();
    let failed = Failure {
        errno: Errno::NoSpace,
        message: "full".to_owned(),
    };
    wire.session.answer(second.slot, Answer::Failed(failed));
    assert!(wire.session.next_job().is_none());
    let error = b"\0\0\0\x1c\0\x04full";
    assert_eq!(wire.read(), wide_chunk(1 << 15 | 1, 1, 0, error));
}

#[test]
fn a_client_that_leaves_between_pieces_leaves_nothing_behind() {
    let mut wire = huge();
    let jobs = wire.send(&[wide(0, 6, 1, 0, 9 << 30), wide(0, 4, 2, 0, 9 << 30)].concat());
    wire.session.answer(jobs[0].slot, Answer::Done);
    wire.session.lost();
    assert!(wire.session.next_job().is_none());
    wire.session.answer(jobs[1].slot, Answer::Done);
    assert!(wire.session.next_job().is_none());
    assert!(wire.session.is_finished());
}

#[test]
fn a_disconnect_waits_for_the_last_piece() {
    let mut wire = huge();
    let jobs = wire.send(&[wide(0, 6, 1, 0, 2 << 30), wide(0, 2, 0, 0, 0)].concat());
    wire.session.answer(jobs[0].slot, Answer::Done);
    let last = wire.session.next_job().unwrap();
    wire.session.answer(last.slot, Answer::Done);
    assert!(!wire.session.is_finished());
    assert_eq!(wire.read(), wide_chunk(0, 1, 0, &[]));
    assert!(wire.session.is_finished());
}

/// What is wrong, the request's bytes, the error number.
fn refused() -> Vec<(&'static str, Vec<u8>, u8)> {
    let payload = |flags: u16, command: u16, length: u64| {
        let bytes = vec![0x55; usize::try_from(length).unwrap()];
        [wide(flags | 32, command, 5, 0, length), bytes].concat()
    };
    vec![
        (
            "write without its flag has no payload",
            wide(0, 1, 5, 0, 512),
            22,
        ),
        ("payload of a read", payload(0, 0, 512), 22),
        ("payload of a flush", payload(0, 3, 512), 22),
        ("payload of a trim", payload(0, 4, 1536), 22),
        ("payload of a status", payload(0, 7, 24), 22),
        ("payload of an unknown command", payload(0, 77, 1 << 20), 22),
        ("write of nothing", payload(0, 1, 0), 22),
        ("unaligned write", payload(0, 1, 700), 22),
        ("write past the end", payload(0, 1, SIZE + 512), 28),
        ("read of 2^64-512", wide(0, 0, 5, 0, u64::MAX - 511), 22),
        ("read of 2^32", wide(0, 0, 5, 0, 1 << 32), 22),
        ("cache of 2^40", wide(0, 5, 5, 0, 1 << 40), 22),
        ("zeroes of 2^64-512", wide(0, 6, 5, 0, u64::MAX - 511), 28),
        ("zeroes that wrap", wide(0, 6, 5, 1024, u64::MAX - 511), 22),
        ("trim of 2^63", wide(0, 4, 5, 0, 1 << 63), 22),
        ("status of 2^63", wide(0, 7, 5, 0, 1 << 63), 22),
        ("status that wraps", wide(0, 7, 5, u64::MAX - 511, 1024), 22),
        ("unaligned zeroes", wide(0, 6, 5, 0, (1 << 40) + 1), 22),
        ("flush with a length", wide(0, 3, 5, 0, 1 << 40), 22),
    ]
}

#[test]
fn refused_requests_keep_the_extended_stream_in_step() {
    for (name, script, number) in refused() {
        let mut wire = Wire::extended(false);
        let jobs = wire.send(&[script, wide(0, 3, 6, 0, 0)].concat());
        assert_eq!(whats(&jobs), ["Flush"], "{name}");
        let reply = wire.read();
        assert_eq!(
            reply[..8],
            [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0x80, 1],
            "{name}"
        );
        assert_eq!(reply[32..36], [0, 0, 0, number], "{name}");
        wire.session.answer(jobs[0].slot, Answer::Done);
        assert_eq!(wire.read(), wide_chunk(0, 6, 0, &[]), "{name}");
    }
}

#[test]
fn a_payload_over_the_limit_ends_the_session_before_it_is_taken() {
    for (command, length) in [
        (1, (32 << 20) + 512),
        (1, 1 << 32),
        (1, u64::MAX),
        (7, 1 << 40),
        (99, 1 << 63),
    ] {
        let mut wire = Wire::extended(false);
        assert_eq!(wire.send(&wide(32, command, 1, 0, length)), []);
        assert!(wire.session.is_finished(), "{command} {length}");
    }
}

#[test]
fn headers_of_the_other_form_end_the_session() {
    for (mut wire, script) in [
        (Wire::extended(false), request(0, 3, 1, 0, 0)),
        (Wire::greeted(false, true), wide(0, 3, 1, 0, 0)),
    ] {
        let script = [script, vec![0; 8]].concat();
        let mut jobs = Vec::new();
        wire.offer(&script, &mut jobs);
        assert_eq!(jobs, []);
        assert!(wire.session.is_finished());
    }
}
