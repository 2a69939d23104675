//! F72 by chance: random messages, memory and inflight regions, with enough of them right to get
//! past the first check.

use super::super::protocol::protocol_feature;
use super::super::{Inflight, Memory, Violation, testing};
use super::*;
use vhost_driver::{message, number};

/// Bytes of which most fields are small or near an end, as bugs live there.
fn odd_bytes(rng: &mut block::Rng, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        match rng.below(6) {
            0 => bytes.extend([0; 8]),
            1 => bytes.extend((rng.below(64) as u32).to_le_bytes()),
            2 => bytes.extend((rng.below(len as u64)).to_le_bytes()),
            3 => bytes.extend((rng.below(8) as u16).to_le_bytes()),
            4 => bytes.extend((u64::MAX - rng.below(64)).to_le_bytes()),
            _ => bytes.extend(rng.next_u64().to_le_bytes()),
        }
    }
    bytes.truncate(len);
    bytes
}

/// A queue of 16 in 16 KiB with five requests that are right, and then some bytes that are not.
fn odd_queue(rng: &mut block::Rng) -> Vec<u8> {
    let mut bytes = vec![0; 16 << 10];
    for request in 0..5_u64 {
        let kind = [0, 1, 4, 8, 11, 13, 13][rng.below(7) as usize];
        let header = 4096 + request * 1024;
        bytes[header as usize] = kind;
        bytes[header as usize + 8] = rng.below(4) as u8;
        let data = match kind {
            0 => (512 * (1 + rng.below(4)), 3),
            8 => (20, 3),
            1 => (512 * (1 + rng.below(4)), 1),
            _ => (16, 1),
        };
        // Ranges.
        bytes[header as usize + 16 + 8] = 1 + rng.below(4) as u8;
        let parts = [(0, 16, 1), (16, data.0, data.1), (16 + data.0, 1, 2)];
        for (index, (at, len, flags)) in (request * 3..).zip(parts) {
            let place = index as usize * 16;
            bytes[place..][..8].copy_from_slice(&(header + at).to_le_bytes());
            bytes[place + 8..][..4].copy_from_slice(&(len as u32).to_le_bytes());
            bytes[place + 12] = flags;
            bytes[place + 14] = index as u8 + 1;
        }
        bytes[260 + 2 * request as usize] = request as u8 * 3;
    }
    bytes[258] = 5;
    for _ in 0..rng.below(6) {
        let at = match rng.below(3) {
            0 => rng.below(16 * 16),
            1 => 256 + rng.below(64),
            _ => 4096 + rng.below(5) * 1024 + rng.below(32),
        };
        bytes[at as usize] = match rng.below(3) {
            0 => rng.next_u64() as u8,
            _ => rng.below(17) as u8,
        };
    }
    bytes
}

#[test]
fn random_memory_never_breaks_a_device_or_gives_a_job_outside_the_disk() {
    let export = export();
    let features = testing::features(&export);
    let mut pool = BufferPool::new(1 << 20);
    let (mut jobs, mut begun) = (0, 0);
    for seed in 0..3000 {
        let mut rng = block::Rng::new(seed);
        let bytes = odd_queue(&mut rng);
        let memory = Memory::of_bytes(&bytes).unwrap();
        let inflight = odd_bytes(&mut rng, 512);
        let inflight = rng.one_in(2).then_some(inflight.as_slice());
        let device = testing::device(
            export.clone(),
            memory,
            16,
            [0, 256, 512],
            features,
            inflight,
        );
        let Some(mut device) = device else { continue };
        begun += 1;
        for _ in 0..4 {
            while let Some(Job { slot, work }) = device.next_job(&mut pool) {
                jobs += 1;
                let end = match &work {
                    Work::Write { offset, data, .. } => offset + data.len() as u64,
                    Work::Read { offset, length } => offset + u64::from(*length),
                    Work::Trim { offset, length, .. }
                    | Work::WriteZeroes { offset, length, .. } => offset + length,
                    Work::Flush | Work::BlockStatus { .. } => 0,
                };
                assert!(end <= DISK_BYTES as u64, "seed {seed}: {work:?}");
                let answer = match work {
                    Work::Read { length, .. } => Answer::Data(pool.take(length as usize)),
                    _ => Answer::Done,
                };
                device.answer(slot, answer, &mut pool);
            }
            device.publish();
            device.want_kicks();
        }
        assert_eq!(device.in_flight(), 0);
    }
    assert!(begun > 1000 && jobs > 1000, "{begun} devices, {jobs} jobs");
}

#[test]
fn random_messages_never_break_a_device() {
    // Payloads of the right length for the numbers that have one.
    let lengths = [0, 0, 8, 0, 0, 8, 0, 0, 8, 40, 8, 8, 8, 8, 8, 0, 8, 0, 8];
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..3000 {
        let mut rng = block::Rng::new(seed);
        let mut device = Device::new(export());
        let all = protocol_feature::ALL.to_le_bytes();
        feed(
            &mut device,
            &message(number::SET_PROTOCOL_FEATURES, 0, &all),
        )
        .unwrap();
        for _ in 0..50 {
            let number = rng.below(40) as u32;
            let length = match lengths.get(number as usize) {
                Some(length) if !rng.one_in(10) => *length,
                _ => rng.below(80) as usize,
            };
            let payload = odd_bytes(&mut rng, length);
            let mut bytes = message(number, if rng.one_in(20) { 0 } else { 8 }, &payload);
            if rng.one_in(50) {
                let at = rng.below(12) as usize;
                bytes[at] = rng.next_u64() as u8;
            }
            if feed(&mut device, &bytes).is_err() {
                refused += 1;
                break;
            }
            taken += 1;
        }
        device.publish();
    }
    assert!(
        taken > 10_000 && refused > 100,
        "{taken} taken, {refused} refused"
    );
}

/// Feeds bytes as a socket would, as far as the device takes any.
fn feed(device: &mut Device, mut bytes: &[u8]) -> Result<(), Violation> {
    while !bytes.is_empty() {
        while let Some((output, _)) = device.output() {
            let count = output.len();
            device.sent(count);
        }
        let into = device.receive_into()?;
        if into.is_empty() {
            return Ok(());
        }
        let count = into.len().min(bytes.len());
        into[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        device.received(count, Vec::new())?;
    }
    Ok(())
}

#[test]
fn random_inflight_regions_give_each_chain_once_at_most() {
    let mut some = 0;
    for seed in 0..3000 {
        let mut rng = block::Rng::new(seed);
        let mut bytes = odd_bytes(&mut rng, 16 + 16 * 16);
        // A version and the right number of entries, so that it is looked at.
        bytes[8..12].copy_from_slice(&[1, 0, 16, 0]);
        let used = u16::from_le_bytes([bytes[14], bytes[15]]);
        let mut inflight = Inflight::of_bytes(&bytes, 16).unwrap();
        let Ok(mut heads) = inflight.recover(used.wrapping_add(rng.below(20) as u16)) else {
            continue;
        };
        some += usize::from(!heads.is_empty());
        let count = heads.len();
        heads.sort_unstable();
        heads.dedup();
        assert!(heads.len() == count && heads.iter().all(|head| *head < 16));
    }
    assert!(some > 100, "{some} regions with chains");
}
