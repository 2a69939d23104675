//! The handshake.

use super::*;

const UNSUP: u32 = (1 << 31) + 1;
const POLICY: u32 = (1 << 31) + 2;
const INVALID: u32 = (1 << 31) + 3;
const UNKNOWN: u32 = (1 << 31) + 6;
const TOO_BIG: u32 = (1 << 31) + 9;

fn flagged() -> Wire {
    let mut wire = Wire::new(false);
    let greeting = wire.read();
    assert_eq!(greeting, [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat());
    wire.send(&3_u32.to_be_bytes());
    wire
}

/// `INFO_EXPORT` and `INFO_BLOCK_SIZE` as the answers to `INFO` and `GO`.
fn description(option: u32, flags: u16) -> Vec<u8> {
    let size = [&[0, 0][..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
    let blocks = [
        &[0, 3][..],
        &512_u32.to_be_bytes(),
        &4096_u32.to_be_bytes(),
        &33_554_432_u32.to_be_bytes(),
    ];
    [
        option_reply(option, 3, &size),
        option_reply(option, 3, &blocks.concat()),
    ]
    .concat()
}

/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048;
const DF: u16 = 128;

#[test]
fn every_option_has_its_answer_and_the_session_goes_on() {
    let allocation = |id: u8| [&[0, 0, 0, id][..], b"base:allocation"].concat();
    let cases: &[(&str, u32, Vec<u8>, Vec<u8>)] = &[
        (
            "LIST",
            3,
            vec![],
            [option_reply(3, 2, &string("disk")), option_reply(3, 1, &[])].concat(),
        ),
        (
            "LIST with data",
            3,
            vec![1],
            option_reply(3, INVALID, b"the option is longer than its content"),
        ),
        (
            "STARTTLS",
            5,
            vec![],
            option_reply(5, POLICY, b"this export is served without TLS"),
        ),
        (
            "unknown with data",
            99,
            vec![7; 5000],
            option_reply(99, UNSUP, b"unknown option"),
        ),
        (
            "SET_META before structured replies",
            10,
            context_query("disk", &["base:allocation"]),
            option_reply(10, INVALID, b"structured replies come first"),
        ),
        (
            "INFO",
            6,
            go("disk", &[]),
            [description(6, FLAGS), option_reply(6, 1, &[])].concat(),
        ),
        (
            "STRUCTURED_REPLY with data",
            8,
            vec![0],
            option_reply(8, INVALID, b"the option is longer than its content"),
        ),
        ("STRUCTURED_REPLY", 8, vec![], option_reply(8, 1, &[])),
        (
            "INFO of the default export, with its name",
            6,
            go("", &[1, 3]),
            [
                description(6, FLAGS | DF),
                option_reply(6, 3, b"\0\x01disk"),
                option_reply(6, 1, &[]),
            ]
            .concat(),
        ),
        (
            "INFO of another export",
            6,
            go("other", &[]),
            option_reply(6, UNKNOWN, b"no such export"),
        ),
        (
            "INFO cut off",
            6,
            string("disk"),
            option_reply(6, INVALID, b"the option is cut off"),
        ),
        (
            "INFO with a name longer than the option",
            6,
            vec![0, 0, 9, 0, 1],
            option_reply(6, INVALID, b"the option is cut off"),
        ),
        (
            "INFO with a name over the limit",
            6,
            [&5000_u32.to_be_bytes()[..], &[b'x'; 5002]].concat(),
            option_reply(6, TOO_BIG, b"a string over 4096 bytes"),
        ),
        (
            "INFO with bytes after it",
            6,
            [go("disk", &[]), vec![0]].concat(),
            option_reply(6, INVALID, b"the option is longer than its content"),
        ),
        (
            "INFO with 129 requests",
            6,
            go("disk", &[3; 129]),
            option_reply(6, TOO_BIG, b"too many information requests"),
        ),
        (
            "LIST_META of everything",
            9,
            context_query("disk", &[]),
            [option_reply(9, 4, &allocation(0)), option_reply(9, 1, &[])].concat(),
        ),
        (
            "LIST_META of base",
            9,
            context_query("", &["base:"]),
            [option_reply(9, 4, &allocation(0)), option_reply(9, 1, &[])].concat(),
        ),
        (
            "LIST_META of something else",
            9,
            context_query("disk", &["qemu:dirty-bitmap:x"]),
            option_reply(9, 1, &[]),
        ),
        (
            "SET_META of a namespace",
            10,
            context_query("disk", &["base:"]),
            option_reply(10, 1, &[]),
        ),
        (
            "SET_META",
            10,
            context_query("disk", &["x:y", "base:allocation"]),
            [
                option_reply(10, 4, &allocation(1)),
                option_reply(10, 1, &[]),
            ]
            .concat(),
        ),
        (
            "SET_META of another export",
            10,
            context_query("other", &["base:allocation"]),
            option_reply(10, UNKNOWN, b"no such export"),
        ),
        (
            "SET_META twice of the same, of a leaf nobody knows and of no namespace",
            10,
            context_query(
                "",
                &[
                    "base:allocation",
                    "base:allocation",
                    "base:x",
                    "base",
                    "",
                    "\0",
                ],
            ),
            [
                option_reply(10, 4, &allocation(1)),
                option_reply(10, 1, &[]),
            ]
            .concat(),
        ),
        (
            "SET_META of nothing",
            10,
            context_query("disk", &[]),
            option_reply(10, 1, &[]),
        ),
        (
            "SET_META without its count",
            10,
            string("disk"),
            option_reply(10, INVALID, b"the option is cut off"),
        ),
        (
            "INFO of everything, twice, and of what is not known yet",
            6,
            go("disk", &[0, 1, 1, 2, 3, 9, u16::MAX]),
            [
                description(6, FLAGS | DF),
                option_reply(6, 3, b"\0\x01disk"),
                option_reply(6, 1, &[]),
            ]
            .concat(),
        ),
        (
            "SET_META with fewer queries than it says",
            10,
            [string("disk"), vec![0, 0, 0, 2], string("base:")].concat(),
            option_reply(10, INVALID, b"the option is cut off"),
        ),
        (
            "SET_META with 2^32-1 queries",
            10,
            [string("disk"), vec![255; 4]].concat(),
            option_reply(10, TOO_BIG, b"too many queries"),
        ),
        (
            "GO to another export",
            7,
            go("other", &[]),
            option_reply(7, UNKNOWN, b"no such export"),
        ),
        (
            "GO",
            7,
            go("disk", &[3]),
            [description(7, FLAGS | DF), option_reply(7, 1, &[])].concat(),
        ),
    ];
    for chunk in [usize::MAX, 1, 7] {
        let mut wire = flagged();
        wire.chunk = chunk;
        for (name, number, data, reply) in cases {
            wire.send(&option(*number, data));
            assert_eq!(wire.read(), *reply, "{name}, in pieces of {chunk}");
        }
        assert!(wire.session.is_greeted());
    }
}

#[test]
fn an_old_client_has_no_other_option_than_export_name() {
    for flags in [0_u32, 2] {
        for number in [3, 5, 6, 7, 8, 11] {
            let mut wire = Wire::new(false);
            wire.send(&flags.to_be_bytes());
            wire.read();
            wire.send(&option(number, &[]));
            assert!(wire.read().is_empty() && wire.session.is_finished());
        }
    }
}

#[test]
fn extended_headers_stay_once_chosen_and_exclude_export_name() {
    let mut wire = flagged();
    let too_late = b"extended headers were chosen already";
    let cases = [
        (8, vec![], option_reply(8, 1, &[])),
        (
            11,
            vec![0],
            option_reply(11, INVALID, b"the option is longer than its content"),
        ),
        (11, vec![], option_reply(11, 1, &[])),
        (8, vec![], option_reply(8, (1 << 31) + 10, too_late)),
        (11, vec![], option_reply(11, 1, &[])),
        (
            6,
            go("disk", &[]),
            [description(6, FLAGS | DF), option_reply(6, 1, &[])].concat(),
        ),
    ];
    for (number, data, reply) in cases {
        wire.send(&option(number, &data));
        assert_eq!(wire.read(), reply, "option {number}");
    }
    wire.send(&option(1, b"disk"));
    assert!(wire.read().is_empty() && wire.session.is_finished());
}

#[test]
fn a_failed_choice_of_contexts_undoes_the_one_before() {
    let mut wire = flagged();
    wire.send(&option(8, &[]));
    wire.send(&option(10, &context_query("disk", &["base:allocation"])));
    wire.send(&option(10, &context_query("other", &["base:allocation"])));
    wire.send(&option(7, &go("disk", &[])));
    wire.read();
    assert_eq!(wire.send(&request(0, 7, 1, 0, 4096)), []);
    let text = b"the request does not fit the export";
    let error = [&[0, 0, 0, 22, 0, 35][..], text].concat();
    assert_eq!(wire.read(), chunk(1 << 15 | 1, 1, &error));
}

#[test]
fn export_name_enters_with_and_without_zeroes() {
    // Without the first bit it is a client that knows no other option.
    for (client_flags, zeroes) in [(3_u32, 0), (1, 124), (2, 0), (0, 124)] {
        for name in [&b"disk"[..], b""] {
            let mut wire = Wire::new(true);
            wire.send(&client_flags.to_be_bytes());
            wire.read();
            wire.send(&option(1, name));
            let read_only = 1_u16 | 2 | 4 | 8 | 256 | 1024;
            let expected = [
                &SIZE.to_be_bytes()[..],
                &read_only.to_be_bytes(),
                &vec![0; zeroes],
            ];
            assert_eq!(wire.read(), expected.concat());
            assert!(wire.session.is_greeted() && !wire.session.is_ending());
        }
    }
}

#[test]
fn export_name_has_no_error_so_an_unknown_name_ends_the_session() {
    let mut wire = flagged();
    wire.send(&option(1, b"other"));
    assert!(wire.read().is_empty());
    assert!(wire.session.is_finished());
}

#[test]
fn abort_is_acknowledged_and_ends_the_session() {
    let mut wire = flagged();
    wire.send(&option(2, &[]));
    assert!(!wire.session.is_finished(), "the reply is not sent yet");
    assert_eq!(wire.read(), option_reply(2, 1, &[]));
    assert!(wire.session.is_finished());
}

#[test]
fn an_option_over_the_limits_is_answered_and_ends_the_session() {
    let mut wire = flagged();
    wire.send(&option(6, &[])[..12]);
    wire.send(&16_385_u32.to_be_bytes());
    assert_eq!(wire.read(), option_reply(6, TOO_BIG, b"option too long"));
    assert!(wire.session.is_finished());

    let mut wire = flagged();
    for _ in 0..64 {
        wire.send(&option(3, &[]));
    }
    wire.read();
    wire.send(&option(3, &[]));
    assert_eq!(wire.read(), option_reply(3, TOO_BIG, b"too many options"));
    assert!(wire.session.is_finished());
}
