//! A reader of what an NBD server sends, from the protocol's specification: each option has its
//! replies, each request exactly one, and the data of reads is what was written before.

use super::SIZE;
use super::script::{Script, SentRequest};
use std::collections::BTreeMap;

pub(super) struct Replies<'a> {
    bytes: &'a [u8],
    script: &'a Script,
    size: u64,
    read_only: bool,
    structured: bool,
    allocation: bool,
}

/// What came for a request.
#[derive(Default)]
struct Got {
    /// The last piece came.
    over: bool,
    error: bool,
    /// Pieces of a read's data by their offsets.
    data: BTreeMap<u64, Vec<u8>>,
}

/// One reply or chunk.
enum Part {
    Nothing,
    Error,
    Data(u64, Vec<u8>),
}

impl<'a> Replies<'a> {
    pub(super) fn new(bytes: &'a [u8], script: &'a Script, (size, read_only): (u64, bool)) -> Self {
        Self {
            bytes,
            script,
            size,
            read_only,
            structured: false,
            allocation: false,
        }
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .expect("the reply ends too early");
        self.bytes = rest;
        taken
    }

    fn number(&mut self, width: usize) -> u64 {
        self.take(width)
            .iter()
            .fold(0, |n, byte| n << 8 | u64::from(*byte))
    }

    pub(super) fn judge(mut self) {
        assert_eq!(self.take(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(self.number(2) & 3, 3, "fixed newstyle without zeroes");
        for option in &self.script.options {
            if option.number == 1 {
                assert_eq!(self.number(8), self.size);
                self.flags();
                let zeroes = if self.script.no_zeroes { 0 } else { 124 };
                assert!(self.take(zeroes).iter().all(|byte| *byte == 0));
                continue;
            }
            let done = self.option_replies(option.number);
            assert!(
                option.right_name || !done,
                "option {} of another export",
                option.number
            );
            match option.number {
                7 if option.right_name => assert!(done, "GO is refused"),
                8 => self.structured |= done,
                10 => self.allocation = done && self.allocation,
                _ => {}
            }
        }
        self.transmission();
    }

    fn flags(&mut self) {
        let flags = self.number(2);
        assert_eq!(flags & 2 != 0, self.read_only, "flags {flags:#x}");
    }

    /// Replies up to the last one; whether that is an ACK.
    fn option_replies(&mut self, number: u32) -> bool {
        if number == 10 {
            self.allocation = false;
        }
        loop {
            assert_eq!(self.number(8), 0x0003_e889_0455_65a9);
            assert_eq!(self.number(4), u64::from(number));
            let kind = self.number(4);
            let length = self.number(4) as usize;
            match kind {
                1 => {
                    assert_eq!(length, 0, "an ACK has no data");
                    return true;
                }
                kind if kind >> 31 == 1 => {
                    self.take(length);
                    return false;
                }
                2 => assert_eq!(number, 3),
                3 => assert!(number == 6 || number == 7),
                4 => {
                    assert!(number == 9 || number == 10);
                    self.allocation |= number == 10;
                }
                other => panic!("option reply {other}"),
            }
            self.take(length);
        }
    }

    fn transmission(mut self) {
        let mut got: BTreeMap<u64, Got> = BTreeMap::new();
        while !self.bytes.is_empty() {
            let (cookie, over, part) = self.reply();
            let got = got.entry(cookie).or_default();
            assert!(!got.over, "request {cookie} is answered twice");
            got.over = over;
            match part {
                Part::Nothing => {}
                Part::Error => got.error = true,
                Part::Data(offset, bytes) => {
                    let again = got.data.insert(offset, bytes);
                    assert!(again.is_none(), "request {cookie}: two pieces at {offset}");
                }
            }
        }
        for (cookie, request) in (0..).zip(&self.script.requests) {
            let got = got.get(&cookie).filter(|got| got.over);
            let got = got.unwrap_or_else(|| panic!("request {cookie} has no reply"));
            self.judge_one(request, got);
        }
    }

    fn request(&self, cookie: u64) -> &'a SentRequest {
        let request = self.script.requests.get(cookie as usize);
        request.expect("a cookie that was sent")
    }

    /// One simple reply or chunk: cookie, whether it is the last, and what it says.
    fn reply(&mut self) -> (u64, bool, Part) {
        let magic = self.number(4);
        if magic == 0x6744_6698 && !self.script.extended {
            return self.simple_reply();
        }
        let wanted = if self.script.extended {
            0x6e8a_278c
        } else {
            0x668e_33ef
        };
        assert_eq!(magic, wanted);
        assert!(
            self.structured || self.script.extended,
            "a chunk that nobody asked for"
        );
        let (flags, kind) = (self.number(2), self.number(2));
        let cookie = self.number(8);
        let request = self.request(cookie);
        let length = if self.script.extended {
            assert_eq!(self.number(8), request.offset);
            self.number(8)
        } else {
            self.number(4)
        };
        let body = self.take(length as usize);
        (cookie, flags & 1 == 1, self.chunk(request, kind, body))
    }

    fn simple_reply(&mut self) -> (u64, bool, Part) {
        let error = self.number(4) != 0;
        let cookie = self.number(8);
        let request = self.request(cookie);
        if error || request.command != 0 {
            let part = if error { Part::Error } else { Part::Nothing };
            return (cookie, true, part);
        }
        assert!(!self.structured, "a simple reply to a read");
        let data = self.take(request.length as usize).to_vec();
        (cookie, true, Part::Data(request.offset, data))
    }

    fn chunk(&self, request: &SentRequest, kind: u64, body: &[u8]) -> Part {
        let reads = || assert_eq!(request.command, 0, "data for {request:?}");
        match kind {
            0 => Part::Nothing,
            1 => {
                reads();
                assert!(body.len() > 8, "an empty piece of data");
                Part::Data(number(body, 0, 8), body[8..].to_vec())
            }
            2 => {
                reads();
                assert_eq!(body.len(), 12);
                let length = number(body, 8, 4);
                assert!(
                    length > 0 && length <= request.length,
                    "a hole of {length} bytes"
                );
                Part::Data(number(body, 0, 8), vec![0; length as usize])
            }
            5 => {
                assert!(!self.script.extended);
                self.status(request, &body[4..], 4)
            }
            6 => {
                assert!(self.script.extended);
                let count = number(body, 4, 4);
                assert!(count == 0 || count == (body.len() as u64 - 8) / 16);
                self.status(request, &body[8..], 8)
            }
            kind if kind >> 15 == 1 => {
                assert!(number(body, 0, 4) != 0);
                assert_eq!(body.len() as u64, 6 + number(body, 4, 2));
                Part::Error
            }
            other => panic!("chunk {other}"),
        }
    }

    /// Extents of a block status, of two numbers each: not beyond the request, none empty.
    fn status(&self, request: &SentRequest, extents: &[u8], width: usize) -> Part {
        assert!(self.allocation && request.command == 7);
        assert!(!extents.is_empty() && extents.len().is_multiple_of(2 * width));
        let lengths: Vec<u64> = extents
            .chunks(2 * width)
            .map(|extent| number(extent, 0, width))
            .collect();
        assert!(lengths.iter().all(|length| *length > 0));
        let covered: u64 = lengths.iter().sum();
        assert!(
            covered <= request.length,
            "{covered} bytes of {}",
            request.length
        );
        assert!(request.flags & 8 == 0 || lengths.len() == 1, "REQ_ONE");
        Part::Nothing
    }

    /// What the request must come to, whatever the disk does.
    fn judge_one(&self, request: &SentRequest, got: &Got) {
        let writes = matches!(request.command, 1 | 4 | 6);
        let end = request.offset.checked_add(request.length);
        let outside = end.is_none_or(|end| end > self.size) && request.command != 3;
        let odd = !request.offset.is_multiple_of(512) || !request.length.is_multiple_of(512);
        let unknown = !matches!(request.command, 0 | 1 | 3 | 4 | 5 | 6 | 7);
        let refused = outside || odd || unknown || (writes && self.read_only);
        assert!(got.error || !refused, "{request:?} is done");
        assert!(
            got.error || request.command != 7 || self.allocation,
            "status without a context"
        );
        if request.command == 0 && !got.error {
            let mut end = request.offset;
            for (offset, piece) in &got.data {
                assert_eq!(*offset, end, "the pieces of {request:?} do not meet");
                self.judge_data(*offset, piece);
                end += piece.len() as u64;
            }
            assert_eq!(end - request.offset, request.length, "{request:?}");
        }
    }

    /// Each sector is one that some request wrote there, or zero.
    fn judge_data(&self, offset: u64, data: &[u8]) {
        for (index, sector) in (0..).zip(data.chunks(512)) {
            let at = offset + index * 512;
            let first = sector[0];
            assert!(
                sector.iter().all(|byte| *byte == first),
                "a mixture at {at}"
            );
            let written = self.script.requests.iter().any(|other| {
                let end = other.offset.saturating_add(other.length);
                other.command == 1 && other.fill == first && (other.offset..end).contains(&at)
            });
            assert!(first == 0 || (written && at < SIZE), "{first:#x} at {at}");
        }
    }
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let bytes = bytes.get(at..at + width).expect("the chunk is too short");
    bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}
