//! The transmission phase, as the protocol means it.

use super::*;

#[test]
fn every_command_becomes_its_job() {
    let payload = vec![0xab; 1024];
    let write = |flags| [request(flags, 1, 1, 4096, 1024), payload.clone()].concat();
    let cases: &[(Vec<u8>, &str)] = &[
        (
            request(0, 0, 1, 512, 4096),
            "Read { offset: 512, length: 4096 }",
        ),
        (
            request(1, 0, 1, 512, 4096),
            "Read { offset: 512, length: 4096 }",
        ),
        (request(4, 0, 1, 0, 512), "Read { offset: 0, length: 512 }"),
        (
            request(0, 0, 1, 0, 1 << 20),
            "Read { offset: 0, length: 1048576 }",
        ),
        (write(0), "write 4096 1024xab fua=false"),
        (write(1), "write 4096 1024xab fua=true"),
        (request(0, 3, 1, 0, 0), "Flush"),
        (
            request(0, 4, 1, 0, 1 << 20),
            "Trim { offset: 0, length: 1048576, fua: false }",
        ),
        (
            request(1, 4, 1, 512, 512),
            "Trim { offset: 512, length: 512, fua: true }",
        ),
        (
            request(0, 6, 1, 0, 512),
            "WriteZeroes { offset: 0, length: 512, fua: false, no_hole: false, fast_bytes: 0 }",
        ),
        (
            request(3, 6, 1, 0, 512),
            "WriteZeroes { offset: 0, length: 512, fua: true, no_hole: true, fast_bytes: 0 }",
        ),
        (
            request(16, 6, 1, 512, 1024),
            "WriteZeroes { offset: 512, length: 1024, fua: false, no_hole: false, fast_bytes: 1024 }",
        ),
        (
            request(0, 5, 1, 512, 1024),
            "Read { offset: 512, length: 1024 }",
        ),
        (
            request(0, 7, 1, 0, 1 << 20),
            "BlockStatus { offset: 0, length: 1048576, one: false }",
        ),
        (
            request(8, 7, 1, 0, 512),
            "BlockStatus { offset: 0, length: 512, one: true }",
        ),
    ];
    for piece in [usize::MAX, 1, 29] {
        let mut wire = Wire::greeted(false, true);
        wire.chunk = piece;
        for (script, job) in cases {
            let jobs = wire.send(script);
            assert_eq!(whats(&jobs), [*job], "in pieces of {piece}");
            wire.session
                .answer(jobs[0].slot, Answer::Failed(failure(Errno::Io)));
            wire.read();
            assert_eq!(wire.session.in_flight(), 0);
        }
    }
}

fn failure(errno: Errno) -> Failure {
    Failure {
        errno,
        message: "why".to_owned(),
    }
}

#[test]
fn answers_become_simple_replies() {
    let mut wire = Wire::greeted(false, false);
    let script = [
        request(0, 0, 11, 0, 512),
        request(0, 0, 12, 512, 512),
        [request(0, 1, 13, 0, 512), vec![1; 512]].concat(),
        request(0, 3, 14, 0, 0),
    ]
    .concat();
    let jobs = wire.send(&script);
    // In another order than they came.
    wire.session.answer(jobs[3].slot, Answer::Done);
    wire.session
        .answer(jobs[1].slot, Answer::Data(filled(512, 0)));
    wire.session
        .answer(jobs[2].slot, Answer::Failed(failure(Errno::NoSpace)));
    wire.session
        .answer(jobs[0].slot, Answer::Failed(failure(Errno::Io)));
    let expected = [
        simple_reply(0, 14),
        simple_reply(0, 12),
        vec![0; 512],
        simple_reply(28, 13),
        // No payload after an error, or the stream would be out of step.
        simple_reply(5, 11),
    ];
    assert_eq!(wire.read(), expected.concat());
}

#[test]
fn answers_become_structured_replies() {
    let mut wire = Wire::greeted(false, true);
    let script = [
        request(0, 0, 21, 512, 1024),
        request(4, 0, 22, 4096, 1024),
        request(0, 0, 23, 0, 512),
        request(0, 7, 24, 0, 1 << 20),
        request(8, 7, 25, 0, 8192),
        request(0, 3, 26, 0, 0),
    ];
    let jobs = wire.send(&script.concat());
    let run = |length_bytes, hole, zero| BlockRun {
        length_bytes,
        hole,
        zero,
    };
    let runs = vec![
        run(4096, false, false),
        run(4096, false, false),
        run(65536, true, true),
        run(512, false, true),
        run(u64::MAX / 2, true, false),
        run(u64::MAX / 2, false, false),
    ];
    wire.session
        .answer(jobs[0].slot, Answer::Data(filled(1024, 7)));
    wire.session
        .answer(jobs[1].slot, Answer::Data(filled(1024, 0)));
    wire.session
        .answer(jobs[2].slot, Answer::Failed(failure(Errno::Io)));
    wire.session
        .answer(jobs[3].slot, Answer::Status(runs.clone()));
    wire.session.answer(jobs[4].slot, Answer::Status(runs));
    wire.session.answer(jobs[5].slot, Answer::Done);
    let extents = |list: &[(u32, u32)]| -> Vec<u8> {
        let pairs = list
            .iter()
            .flat_map(|(l, s)| [l.to_be_bytes(), s.to_be_bytes()].concat());
        [0, 0, 0, 1].into_iter().chain(pairs).collect()
    };
    let rest = (1 << 20) - 8192 - 65536 - 512;
    let expected = [
        chunk(1, 21, &[&512_u64.to_be_bytes()[..], &[7; 1024]].concat()),
        chunk(
            2,
            22,
            &[&4096_u64.to_be_bytes()[..], &1024_u32.to_be_bytes()].concat(),
        ),
        chunk(1 << 15 | 1, 23, b"\0\0\0\x05\0\x03why"),
        chunk(
            5,
            24,
            &extents(&[(8192, 0), (65536, 3), (512, 2), (rest, 1)]),
        ),
        chunk(5, 25, &extents(&[(8192, 0)])),
        simple_reply(0, 26),
    ];
    assert_eq!(wire.read(), expected.concat());
}

#[test]
fn a_read_is_cut_into_data_and_holes_unless_it_must_not() {
    const GRAIN: usize = 32 << 10;
    // Bytes in grains of 32 KiB; what is sent as (hole, grains) each.
    let cases = [
        (vec![0, 0, 0], vec![(true, 3)]),
        (vec![1, 1], vec![(false, 2)]),
        (vec![0, 0, 7, 0], vec![(true, 2), (false, 1), (true, 1)]),
        (vec![1, 0, 0, 2, 3], vec![(false, 1), (true, 2), (false, 2)]),
    ];
    for (grains, parts) in cases {
        let bytes: Vec<u8> = grains.iter().flat_map(|b| [*b; GRAIN]).collect();
        let length = u32::try_from(bytes.len()).unwrap();
        let mut wire = Wire::greeted(false, true);
        let jobs =
            wire.send(&[request(0, 0, 1, 512, length), request(4, 0, 2, 512, length)].concat());
        for job in jobs {
            wire.session
                .answer(job.slot, Answer::Data(Buffer::copy_of(&bytes)));
        }
        let mut expected = Vec::new();
        let mut at = 0_usize;
        for (n, (hole, count)) in parts.iter().enumerate() {
            let offset = (512 + at as u64).to_be_bytes();
            let size = *count as usize * GRAIN;
            let done = u16::from(n + 1 == parts.len());
            let body = if *hole {
                [&offset[..], &u32::try_from(size).unwrap().to_be_bytes()].concat()
            } else {
                [&offset[..], &bytes[at..at + size]].concat()
            };
            expected.extend(flagged_chunk(done, if *hole { 2 } else { 1 }, 1, &body));
            at += size;
        }
        // In one piece: its zeroes are sent, unless there is nothing else.
        let whole = [&512_u64.to_be_bytes()[..], &bytes].concat();
        let hole = [&512_u64.to_be_bytes()[..], &length.to_be_bytes()].concat();
        let all_zero = grains.iter().all(|b| *b == 0);
        expected.extend(if all_zero {
            chunk(2, 2, &hole)
        } else {
            chunk(1, 2, &whole)
        });
        assert!(wire.read() == expected, "{grains:?}");
        assert_eq!(wire.session.in_flight(), 0);
    }
}

#[test]
fn a_cached_range_is_answered_without_its_data() {
    for (structured, error) in [
        (false, simple_reply(5, 2)),
        (true, chunk(1 << 15 | 1, 2, b"\0\0\0\x05\0\x03why")),
    ] {
        let mut wire = Wire::greeted(true, structured);
        let jobs = wire.send(&[request(0, 5, 1, 0, 512), request(0, 5, 2, 0, 512)].concat());
        wire.session
            .answer(jobs[0].slot, Answer::Data(filled(512, 7)));
        wire.session
            .answer(jobs[1].slot, Answer::Failed(failure(Errno::Io)));
        assert_eq!(wire.read(), [simple_reply(0, 1), error].concat());
    }
}

#[test]
fn a_status_without_runs_is_an_error_and_never_an_empty_reply() {
    let mut wire = Wire::greeted(false, true);
    let jobs = wire.send(&request(0, 7, 1, 0, 4096));
    wire.session.answer(jobs[0].slot, Answer::Status(vec![]));
    let reply = wire.read();
    assert_eq!(
        reply[..8],
        [0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1],
        "{reply:?}"
    );
}

#[test]
fn each_failure_has_the_protocols_number() {
    let numbers = [
        (Errno::Permission, 1),
        (Errno::Io, 5),
        (Errno::NoMemory, 12),
        (Errno::Invalid, 22),
        (Errno::NoSpace, 28),
        (Errno::NotSupported, 95),
        (Errno::Shutdown, 108),
    ];
    for (errno, number) in numbers {
        let mut wire = Wire::greeted(false, false);
        let jobs = wire.send(&request(0, 3, 9, 0, 0));
        wire.session
            .answer(jobs[0].slot, Answer::Failed(failure(errno)));
        assert_eq!(wire.read(), simple_reply(number, 9), "{errno:?}");
    }
}

#[test]
fn disconnect_answers_what_is_in_flight_and_then_ends() {
    let mut wire = Wire::greeted(false, false);
    let script = [request(0, 3, 1, 0, 0), request(0, 2, 2, 0, 0)].concat();
    let jobs = wire.send(&script);
    assert_eq!(whats(&jobs), ["Flush"]);
    assert!(wire.session.is_ending() && !wire.session.is_finished());
    let taken = wire
        .session
        .receive(&request(0, 3, 3, 0, 0), &mut wire.pool);
    assert_eq!(taken, 0, "input after a disconnect");
    wire.session.answer(jobs[0].slot, Answer::Done);
    assert!(!wire.session.is_finished(), "the reply is not sent yet");
    assert_eq!(wire.read(), simple_reply(0, 1));
    assert!(wire.session.is_finished());
}

#[test]
fn a_new_size_counts_from_the_next_request_on() {
    let mut wire = Wire::greeted(false, false);
    assert_eq!(wire.send(&request(0, 0, 1, SIZE, 512)), []);
    assert_eq!(wire.read(), simple_reply(22, 1));
    wire.session.set_size(SIZE + 512);
    assert_eq!(wire.send(&request(0, 0, 2, SIZE, 512)).len(), 1);
}
