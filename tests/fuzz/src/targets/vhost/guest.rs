//! A guest's memory with one queue and requests in it, from the specification (VIRTIO 1.2, 2.7 and
//! 5.2.6), and what must have become of them.

use crate::input::Input;
use tapdisk::vhost_user::Memory;

/// Size of the disk.
pub(super) const SIZE: u64 = 32 << 10;

const MEMORY_BYTES: usize = 64 << 10;
const QUEUE_SIZE: u16 = 64;
const AVAILABLE: usize = 1024;
const USED: usize = 2048;
const INDIRECT: usize = 4096;
const REQUESTS: usize = 8192;
const REQUEST_BYTES: usize = 4096;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const IS_INDIRECT: u16 = 4;

/// A request as the guest means it.
#[derive(Debug)]
struct Asked {
    head: u16,
    kind: u32,
    sector: u64,
    /// Addresses and lengths of the data's pieces.
    data: Vec<(u64, u32)>,
    fill: u8,
    /// Of a range.
    sectors: u32,
    flags: u32,
    status: u64,
}

pub(super) struct Guest {
    pub(super) bytes: Vec<u8>,
    pub(super) queue_size: u16,
    pub(super) rings: [u64; 3],
    asked: Vec<Asked>,
    read_only: bool,
}

/// What the disk holds at first: each sector its number.
pub(super) fn first_content() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 512) as u8 ^ 0x80).collect()
}

impl Guest {
    pub(super) fn new(input: &mut Input<'_>, read_only: bool) -> Self {
        let mut guest = Self {
            bytes: vec![0; MEMORY_BYTES],
            queue_size: QUEUE_SIZE,
            rings: [0, AVAILABLE as u64, USED as u64],
            asked: Vec::new(),
            read_only,
        };
        let mut descriptor = 0;
        for index in 0..1 + input.below(10) as usize {
            let asked = guest.request(input, index, &mut descriptor);
            let slot = AVAILABLE + 4 + 2 * index;
            guest.put(slot, &asked.head.to_le_bytes());
            guest.asked.push(asked);
        }
        let count = guest.asked.len() as u16;
        guest.put(AVAILABLE + 2, &count.to_le_bytes());
        guest
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn request(&mut self, input: &mut Input<'_>, index: usize, descriptor: &mut u16) -> Asked {
        let kind = input.pick(&[0, 1, 4, 8, 11, 13, 0, 1, 99]);
        let sector = input.below(SIZE / 512 + 2);
        let fill = 1 + input.below(255) as u8;
        let (sectors, flags) = (input.below(9) as u32, input.pick(&[0u32, 1, 0, 2]));
        let at = REQUESTS + index * REQUEST_BYTES;
        self.put(at, &(kind as u32).to_le_bytes());
        self.put(at + 8, &sector.to_le_bytes());
        let data_at = at + 64;
        let length = match kind {
            0 | 1 => 512 * (1 + input.below(5) as u32),
            8 => 20,
            11 | 13 => 16,
            _ => 0,
        };
        let mut data = vec![(data_at as u64, length)];
        if length > 1 && input.one_in(3) {
            let first = 1 + input.below(u64::from(length) - 1) as u32;
            data = vec![
                (data_at as u64, first),
                (data_at as u64 + u64::from(first), length - first),
            ];
        }
        data.retain(|(_, length)| *length > 0);
        if matches!(kind, 11 | 13) {
            self.put(data_at, &sector.to_le_bytes());
            self.put(data_at + 8, &sectors.to_le_bytes());
            self.put(data_at + 12, &flags.to_le_bytes());
        } else if kind == 1 {
            self.bytes[data_at..data_at + length as usize].fill(fill);
        }
        let status = (at + 32) as u64;
        self.bytes[at + 32] = 0xEE;
        let to_us = if matches!(kind, 0 | 8) { WRITE } else { 0 };
        let mut chain = vec![(at as u64, 16, 0)];
        chain.extend(data.iter().map(|(at, length)| (*at, *length, to_us)));
        chain.push((status, 1, WRITE));
        let head = *descriptor;
        if input.one_in(3) {
            let table = INDIRECT + index * 256;
            self.write_chain(table, 0, &chain);
            let bytes = chain.len() as u32 * 16;
            self.descriptor(
                usize::from(head) * 16,
                (table as u64, bytes, IS_INDIRECT),
                0,
            );
            *descriptor += 1;
        } else {
            self.write_chain(0, head, &chain);
            *descriptor += chain.len() as u16;
        }
        let kind = kind as u32;
        Asked {
            head,
            kind,
            sector,
            data,
            fill,
            sectors,
            flags,
            status,
        }
    }

    fn write_chain(&mut self, table: usize, first: u16, chain: &[(u64, u32, u16)]) {
        for (place, (address, length, flags)) in (first..).zip(chain) {
            let last = usize::from(place - first) + 1 == chain.len();
            let next = if last { 0 } else { NEXT };
            let at = table + usize::from(place) * 16;
            self.descriptor(at, (*address, *length, flags | next), place + 1);
        }
    }

    fn descriptor(&mut self, at: usize, (address, length, flags): (u64, u32, u16), next: u16) {
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Changes fields of descriptors, rings and requests, or where the rings are.
    pub(super) fn damage(&mut self, input: &mut Input<'_>) -> bool {
        for _ in 0..1 + input.below(6) {
            let count = self.asked.len() as u64;
            let (at, width) = match input.below(6) {
                0 => (16 * input.below(16) + input.pick(&[0, 8, 12, 14]), 8),
                1 => (AVAILABLE as u64 + 2 * input.below(80), 2),
                2 => (USED as u64 + 2 * input.below(80), 2),
                3 => (
                    INDIRECT as u64 + 256 * input.below(count) + 2 * input.below(32),
                    4,
                ),
                4 => (
                    REQUESTS as u64 + 4096 * input.below(count) + 4 * input.below(20),
                    8,
                ),
                _ => {
                    let ring = input.below(4) as usize;
                    match self.rings.get_mut(ring) {
                        Some(place) => *place = input.odd(&[MEMORY_BYTES as u64, USED as u64]),
                        None => self.queue_size = input.odd(&[64]) as u16,
                    }
                    continue;
                }
            };
            let value = input
                .odd(&[MEMORY_BYTES as u64, REQUESTS as u64])
                .to_le_bytes();
            self.put(at as usize, value.get(..width).unwrap_or_default());
        }
        true
    }

    /// Every chain came back once, with the status and the data it must have.
    pub(super) fn judge(&self, memory: &Memory) {
        let read = |address: u64, length: usize| {
            let mut bytes = vec![0; length];
            memory.read(address, &mut bytes).expect("it is mapped");
            bytes
        };
        let used = read(USED as u64, 4 + 8 * usize::from(QUEUE_SIZE));
        let count = u16::from_le_bytes([used[2], used[3]]);
        assert_eq!(
            usize::from(count),
            self.asked.len(),
            "chains that came back"
        );
        let entries = used[4..].chunks(8).take(usize::from(count));
        let mut heads: Vec<u32> = entries
            .map(|e| u32::from_le_bytes([e[0], e[1], e[2], e[3]]))
            .collect();
        heads.sort_unstable();
        let mut wanted: Vec<u32> = self
            .asked
            .iter()
            .map(|asked| u32::from(asked.head))
            .collect();
        wanted.sort_unstable();
        assert_eq!(heads, wanted);
        let mut disk = first_content();
        for asked in &self.asked {
            let expected = self.effect(asked, &mut disk);
            let status = read(asked.status, 1)[0];
            assert_eq!(status, expected.0, "{asked:?}");
            if let Some(wanted) = expected.1 {
                let pieces = asked.data.iter();
                let found: Vec<u8> = pieces
                    .flat_map(|(at, length)| read(*at, *length as usize))
                    .collect();
                assert_eq!(found, wanted, "{asked:?}");
            }
        }
    }

    /// The status and the data of a request, done in its turn.
    fn effect(&self, asked: &Asked, disk: &mut [u8]) -> (u8, Option<Vec<u8>>) {
        let bytes: u64 = asked
            .data
            .iter()
            .map(|(_, length)| u64::from(*length))
            .sum();
        let is_range = matches!(asked.kind, 11 | 13);
        let length = if is_range {
            u64::from(asked.sectors) * 512
        } else {
            bytes
        };
        let end = asked.sector * 512 + length;
        let range = (asked.sector * 512) as usize..end as usize;
        let writes = is_range || asked.kind == 1;
        match asked.kind {
            4 => return (0, None),
            8 => return (0, Some(b"a serial number\0\0\0\0\0".to_vec())),
            0 | 1 | 11 | 13 => {}
            _ => return (2, None),
        }
        // What a disk that takes no writes does not offer is not supported there.
        if is_range && self.read_only {
            return (2, None);
        }
        if is_range && (asked.flags > 1 || (asked.kind == 11 && asked.flags == 1)) {
            return (2, None);
        }
        if length == 0 || end > SIZE || (writes && self.read_only) {
            return (1, None);
        }
        match asked.kind {
            0 => return (0, Some(disk[range].to_vec())),
            1 => disk[range].fill(asked.fill),
            13 => disk[range].fill(0),
            _ => {}
        }
        (0, None)
    }
}
