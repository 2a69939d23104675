//! vhost-user-blk: messages in pieces, and queues in a guest's memory. Requests that are right have
//! the effect and the status they must have; whatever else lies in memory breaks nothing.

use crate::guard::bounded;
use crate::input::Input;
use block::BufferPool;
use guest::{Guest, SIZE};
use tapdisk::frontend::{Answer, FrontEnd, Job, Work};
use tapdisk::vhost_user::{Device, Export, Memory, testing};

mod guest;

/// A session's own memory: its receiver, its slots, and buffers of the requests in flight, each as
/// large as a segment of the guest's memory may be said to be.
const LIMIT_BYTES: u64 = 1 << 20;

/// See the module's page.
pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let export = Export {
        size_bytes: SIZE,
        read_only: input.one_in(4),
        serial: *b"a serial number\0\0\0\0\0",
    };
    if input.one_in(3) {
        bounded("a connection", LIMIT_BYTES, || messages(&mut input, export));
        return;
    }
    let mut guest = Guest::new(&mut input, export.read_only);
    let damaged = !input.one_in(3) && guest.damage(&mut input);
    let inflight = (damaged && input.one_in(3)).then(|| input.bytes(400));
    let features = if input.one_in(4) {
        input.number()
    } else {
        testing::features(&export)
    };
    let damaged = damaged || features != testing::features(&export);
    let memory = Memory::of_bytes(&guest.bytes).expect("memory for a guest");
    let device = testing::device(
        export.clone(),
        memory.clone(),
        guest.queue_size,
        guest.rings,
        features,
        inflight.as_deref(),
    );
    let Some(mut device) = device else {
        assert!(damaged, "a right queue is refused");
        return;
    };
    let limit = LIMIT_BYTES + 3 * SIZE;
    bounded("a device", limit, || {
        serve(&mut input, &mut device, &export)
    });
    if !damaged {
        guest.judge(&memory);
    }
}

/// Does the jobs in the order they come.
fn serve(input: &mut Input<'_>, device: &mut Device, export: &Export) {
    let mut pool = BufferPool::new(1 << 16);
    let mut disk = guest::first_content();
    for _ in 0..4 {
        let mut answers = Vec::new();
        while let Some(Job { slot, work }) = device.next_job(&mut pool) {
            check(&work, export);
            answers.push((slot, perform(&mut disk, work, &mut pool)));
        }
        while !answers.is_empty() {
            let at = input.below(answers.len() as u64) as usize;
            let (slot, answer) = answers.swap_remove(at);
            device.answer(slot, answer, &mut pool);
        }
        device.publish();
        device.want_kicks();
    }
    device.lost();
    assert_eq!(device.in_flight(), 0);
    assert!(device.is_finished());
}

/// A job is inside the disk, aligned, and allowed.
fn check(work: &Work, export: &Export) {
    let (offset, length, writes) = match work {
        Work::Read { offset, length } => (*offset, u64::from(*length), false),
        Work::Write { offset, data, .. } => (*offset, data.len() as u64, true),
        Work::Trim { offset, length, .. } | Work::WriteZeroes { offset, length, .. } => {
            (*offset, *length, true)
        }
        Work::Flush => return,
        Work::BlockStatus { .. } => panic!("nobody can ask for that"),
    };
    let end = offset.checked_add(length).expect("a job does not wrap");
    assert!(
        length > 0 && end <= export.size_bytes,
        "{length} bytes at {offset}"
    );
    assert!(offset.is_multiple_of(512) && length.is_multiple_of(512));
    assert!(!writes || !export.read_only);
}

fn perform(disk: &mut [u8], work: Work, pool: &mut BufferPool) -> Answer {
    let range = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
    match work {
        Work::Read { offset, length } => {
            let mut data = pool.take(length as usize);
            let held = &disk[range(offset, u64::from(length))];
            data.as_mut_slice().copy_from_slice(held);
            return Answer::Data(data);
        }
        Work::Write { offset, data, .. } => {
            disk[range(offset, data.len() as u64)].copy_from_slice(data.as_slice());
        }
        Work::WriteZeroes { offset, length, .. } => disk[range(offset, length)].fill(0),
        Work::Trim { .. } | Work::Flush | Work::BlockStatus { .. } => {}
    }
    Answer::Done
}

/// Bytes of the payloads that messages have, by number.
const PAYLOADS: [usize; 19] = [0, 0, 8, 0, 0, 8, 0, 0, 8, 40, 8, 8, 8, 8, 8, 0, 8, 0, 8];

/// Messages of any content, in pieces of any size, without descriptors.
fn messages(input: &mut Input<'_>, export: Export) {
    let mut device = Device::new(export);
    let mut stream = Vec::new();
    for _ in 0..1 + input.below(30) {
        let number = input.below(44);
        let usual = PAYLOADS.get(number as usize).copied();
        let length = match usual {
            Some(usual) if !input.one_in(10) => usual,
            _ => input.below(80) as usize,
        };
        let flags = if input.one_in(16) {
            input.number() as u32
        } else {
            input.pick(&[1, 9])
        };
        let size = if input.one_in(16) {
            input.odd(&[]) as u32
        } else {
            length as u32
        };
        for field in [number as u32, flags, size] {
            stream.extend(field.to_le_bytes());
        }
        let mut payload = Vec::new();
        while payload.len() < length {
            let value = if input.one_in(3) {
                input.odd(&[])
            } else {
                input.below(17)
            };
            payload.extend(value.to_le_bytes());
        }
        payload.truncate(length);
        stream.extend(payload);
    }
    let mut rest = stream.as_slice();
    while !rest.is_empty() {
        while let Some(count) = device.output().map(|(bytes, _)| bytes.len()) {
            device.sent(count);
        }
        let Ok(into) = device.receive_into() else {
            break;
        };
        let piece = if input.is_used_up() {
            4096
        } else {
            1 + input.below(60) as usize
        };
        let count = into.len().min(rest.len()).min(piece);
        if count == 0 {
            break;
        }
        let (now, later) = rest.split_at(count);
        into[..count].copy_from_slice(now);
        rest = later;
        if device.received(count, Vec::new()).is_err() {
            break;
        }
    }
    device.publish();
    device.lost();
    assert!(device.is_finished());
}
