//! What a client sends: flags, options, requests; by the protocol, or with something wrong in it.

use super::SIZE;
use crate::input::Input;

/// An option that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentOption {
    /// Its number.
    pub(super) number: u32,
    /// It names the export that there is.
    pub(super) right_name: bool,
}

/// A request that was sent; its cookie is its place.
#[derive(Debug, Clone)]
pub(super) struct SentRequest {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// What a write writes everywhere.
    pub(super) fill: u8,
}

/// The bytes, and what they were meant to be.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) bytes: Vec<u8>,
    pub(super) no_zeroes: bool,
    /// Requests have extended headers.
    pub(super) extended: bool,
    pub(super) options: Vec<SentOption>,
    pub(super) requests: Vec<SentRequest>,
    /// Whether the replies can be told from the options and requests above.
    pub(super) keeps_to_protocol: bool,
    /// Bytes that reads ask for, if the server may give them.
    pub(super) read_bytes: u64,
}

pub(super) fn make(input: &mut Input<'_>) -> Script {
    let mut script = Script {
        keeps_to_protocol: true,
        no_zeroes: input.one_in(2),
        ..Script::default()
    };
    script
        .bytes
        .extend((1 + 2 * u32::from(script.no_zeroes)).to_be_bytes());
    let style = input.below(3);
    script.extended = style == 2;
    if style > 0 {
        let number = if script.extended { 11 } else { 8 };
        option(&mut script, number, &[], true);
        if input.one_in(2) {
            option(
                &mut script,
                10,
                &contexts("disk", &["base:allocation"]),
                true,
            );
        }
    }
    for _ in 0..input.below(4) {
        any_option(input, &mut script);
    }
    if input.one_in(4) && !script.extended {
        option(&mut script, 1, b"disk", true);
    } else {
        option(&mut script, 7, &go("disk", &[]), true);
    }
    for _ in 0..input.below(24) {
        any_request(input, &mut script);
    }
    if input.one_in(3) {
        damage(input, &mut script);
    }
    script
}

fn option(script: &mut Script, number: u32, data: &[u8], right_name: bool) {
    script.bytes.extend(b"IHAVEOPT");
    script.bytes.extend(number.to_be_bytes());
    script.bytes.extend((data.len() as u32).to_be_bytes());
    script.bytes.extend(data);
    script.options.push(SentOption { number, right_name });
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

fn go(name: &str, wishes: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((wishes.len() as u16).to_be_bytes());
    data.extend(wishes.iter().flat_map(|wish| wish.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

/// Options after which the handshake goes on.
fn any_option(input: &mut Input<'_>, script: &mut Script) {
    let name = input.pick(&["disk", "", "other"]);
    let right = name != "other";
    match input.below(8) {
        0 => option(script, 3, &[], true),
        1 => option(script, 6, &go(name, &[0, 1, 3]), right),
        2 => option(script, 9, &contexts(name, &["base:"]), right),
        3 => option(
            script,
            10,
            &contexts(name, &["base:allocation", "x:y"]),
            right,
        ),
        4 => option(script, 7, &go("other", &[3]), false),
        5 => option(script, 8, &[], true),
        // Unknown, or known with content that makes no sense.
        6 => {
            let data = input.bytes(40);
            let number = input.pick(&[100, 4, 3, 6, 9, 10, 8]);
            option(script, number, &data, false);
            // It may have made sense by chance.
            script.keeps_to_protocol &= number == 100;
        }
        _ => option(script, 6, &string(name), false),
    }
}

fn any_request(input: &mut Input<'_>, script: &mut Script) {
    let command: u16 = input.pick(&[0, 1, 3, 4, 6, 7, 0, 1, 5, 9]);
    let mut flags = if input.one_in(3) {
        1 << input.below(6)
    } else {
        0
    };
    if input.one_in(16) {
        flags = input.number() as u16;
    }
    let mut offset = input.below(SIZE / 512 + 2) * 512;
    let mut length = 512 * input.pick(&[1, 2, 8, 64, 0, 129]);
    if command == 3 && !input.one_in(4) {
        (offset, length) = (0, 0);
    }
    if input.one_in(10) {
        offset = input.odd(&[SIZE]);
    }
    if input.one_in(10) && command != 1 {
        length = input.odd(&[SIZE, 32 << 20]);
        // What is large would make the run slow if it is allowed, which it is on large disks.
        if length > 2 << 20 && matches!(command, 0 | 5) {
            length |= 1;
        }
    }
    let has_payload = if script.extended {
        // The flag says so, whatever the command is.
        flags &= if length > 1 << 20 { !PAYLOAD_LEN } else { !0 };
        flags |= if command == 1 && !input.one_in(8) {
            PAYLOAD_LEN
        } else {
            0
        };
        flags & PAYLOAD_LEN != 0
    } else {
        length &= u64::from(u32::MAX);
        command == 1
    };
    let fill = 1 + input.below(255) as u8;
    push_request(
        script,
        SentRequest {
            flags,
            command,
            offset,
            length,
            fill,
        },
    );
    if has_payload {
        script.bytes.extend(vec![fill; length as usize]);
    }
    if matches!(command, 0 | 5) && length <= 32 << 20 {
        script.read_bytes += length;
    }
}

/// Extended headers: the length is that of a payload.
const PAYLOAD_LEN: u16 = 1 << 5;

fn push_request(script: &mut Script, request: SentRequest) {
    let cookie = script.requests.len() as u64;
    let magic = if script.extended {
        0x21e4_1c71_u32
    } else {
        0x2560_9513
    };
    for part in [
        &magic.to_be_bytes()[..],
        &request.flags.to_be_bytes(),
        &request.command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &request.offset.to_be_bytes(),
    ] {
        script.bytes.extend(part);
    }
    let length = request.length.to_be_bytes();
    script.bytes.extend(if script.extended {
        &length[..]
    } else {
        &length[4..]
    });
    script.requests.push(request);
}

/// Bytes cut off, put in or changed: from there on the stream means something else.
fn damage(input: &mut Input<'_>, script: &mut Script) {
    script.keeps_to_protocol = false;
    for _ in 0..1 + input.below(3) {
        let at = input.below(script.bytes.len() as u64) as usize;
        match input.below(4) {
            0 => script.bytes.truncate(at),
            1 => script.bytes.insert(at, input.number() as u8),
            2 => {
                let more = input.bytes(40);
                script.bytes.splice(at..at, more);
            }
            _ => {
                if let Some(byte) = script.bytes.get_mut(at) {
                    *byte = input.number() as u8;
                }
            }
        }
    }
    // A damaged length may ask for any buffer that the protocol allows.
    script.read_bytes += 64 << 20;
}
