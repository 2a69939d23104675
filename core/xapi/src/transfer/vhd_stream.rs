//! Writes a dynamic VHD as a stream, from the knowledge of which blocks hold data.
//!
//! It only ever writes, so the daemon still parses no image. The layout is XenServer's (footer copy,
//! header, BAT, batmap, blocks whose data begins at a multiple of 4096, footer), so its tools take
//! the result; bitmaps are all ones, because a block is sent whole.

use uuid::Uuid;

/// Bytes of data in a block.
pub(super) const BLOCK_BYTES: u64 = 2 << 20;
const SECTOR: u64 = 512;
/// Where the BAT begins: after the footer copy and the header.
const TABLE_OFFSET: u64 = 1536;
/// A block as it lies in the file: 7 sectors of gap, 1 of bitmap, the data.
const PITCH_BYTES: u64 = 8 * SECTOR + BLOCK_BYTES;
/// Seconds from the Unix epoch to 2000-01-01, where VHD time begins.
const EPOCH_UNIX_S: i64 = 946_684_800;
/// Largest disk whose blocks a 32-bit sector number reaches.
pub(super) const VIRTUAL_BYTES_MAX: u64 = 2040 << 30;

/// A piece of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// This block of the disk, filled up with zeros where the disk ends inside it.
    Block(u64),
}

/// Plans the stream of a disk of `virtual_bytes`; `has_data` has an entry per block.
pub(super) fn plan(
    uuid: Uuid,
    now_unix_s: i64,
    virtual_bytes: u64,
    has_data: &[bool],
) -> Vec<Piece> {
    let size = virtual_bytes.next_multiple_of(BLOCK_BYTES);
    let blocks = size / BLOCK_BYTES;
    let bat_bytes = padded(4 * blocks);
    let batmap_bytes = padded(blocks.div_ceil(8));
    let headers_end = TABLE_OFFSET + bat_bytes + SECTOR + batmap_bytes;
    // The bitmap takes the sector before a multiple of 4096.
    let first_bitmap = (headers_end + SECTOR).next_multiple_of(4096) - SECTOR;

    let mut bat = vec![0u8; bat_bytes as usize];
    let mut next = first_bitmap;
    let mut pieces = Vec::new();
    for (index, entry) in bat.chunks_exact_mut(4).take(blocks as usize).enumerate() {
        if !has_data.get(index).copied().unwrap_or(false) {
            entry.copy_from_slice(&[0xff; 4]);
            continue;
        }
        let sector = u32::try_from(next / SECTOR).unwrap_or(u32::MAX);
        entry.copy_from_slice(&sector.to_be_bytes());
        let gap = if next == first_bitmap {
            first_bitmap - headers_end
        } else {
            7 * SECTOR
        };
        let mut lead = vec![0u8; gap as usize];
        lead.extend_from_slice(&[0xff; SECTOR as usize]);
        pieces.push(Piece::Bytes(lead));
        pieces.push(Piece::Block(index as u64));
        next += PITCH_BYTES;
    }
    let footer = footer(uuid, now_unix_s, size);
    let mut head = footer.to_vec();
    head.extend_from_slice(&header(blocks));
    head.extend_from_slice(&bat);
    head.extend_from_slice(&batmap_header(
        TABLE_OFFSET + bat_bytes + SECTOR,
        batmap_bytes,
    ));
    head.resize(headers_end as usize, 0);
    pieces.insert(0, Piece::Bytes(head));
    pieces.push(Piece::Bytes(footer.to_vec()));
    pieces
}

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR).max(SECTOR)
}

/// One's complement of the sum of all bytes.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let sum = bytes
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    (!sum).to_be_bytes()
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = into.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn footer(uuid: Uuid, now_unix_s: i64, size: u64) -> [u8; 512] {
    let mut footer = [0u8; 512];
    let time = u32::try_from(now_unix_s.saturating_sub(EPOCH_UNIX_S)).unwrap_or(0);
    let (cylinders, heads, sectors) = geometry(size / SECTOR);
    put(&mut footer, 0, b"conectix");
    put(&mut footer, 8, &2u32.to_be_bytes());
    put(&mut footer, 12, &0x0001_0000u32.to_be_bytes());
    put(&mut footer, 16, &SECTOR.to_be_bytes());
    put(&mut footer, 24, &time.to_be_bytes());
    put(&mut footer, 28, b"tap\0");
    put(&mut footer, 32, &0x0001_0003u32.to_be_bytes());
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &cylinders.to_be_bytes());
    put(&mut footer, 58, &[heads, sectors]);
    put(&mut footer, 60, &3u32.to_be_bytes());
    put(&mut footer, 68, uuid.as_bytes());
    let sum = checksum(&footer);
    put(&mut footer, 64, &sum);
    footer
}

fn header(blocks: u64) -> [u8; 1024] {
    let mut header = [0u8; 1024];
    put(&mut header, 0, b"cxsparse");
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &TABLE_OFFSET.to_be_bytes());
    put(&mut header, 24, &0x0001_0000u32.to_be_bytes());
    put(
        &mut header,
        28,
        &u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes(),
    );
    put(&mut header, 32, &(BLOCK_BYTES as u32).to_be_bytes());
    let sum = checksum(&header);
    put(&mut header, 36, &sum);
    header
}

/// An empty batmap: it says nothing about any block, which is always true.
fn batmap_header(map_offset: u64, map_bytes: u64) -> [u8; 512] {
    let mut header = [0u8; 512];
    put(&mut header, 0, b"tdbatmap");
    put(&mut header, 8, &map_offset.to_be_bytes());
    put(
        &mut header,
        16,
        &u32::try_from(map_bytes / SECTOR)
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    put(&mut header, 20, &0x0001_0002u32.to_be_bytes());
    put(&mut header, 24, &checksum(&[]));
    header
}

/// Cylinders, heads and sectors per track (Virtual Hard Disk specification 1.0, appendix).
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65_535 * 16 * 255);
    let (mut spt, mut heads, mut tracks);
    if total >= 65_535 * 16 * 63 {
        (spt, heads) = (255, 16);
        tracks = total / spt;
    } else {
        spt = 17;
        tracks = total / spt;
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (spt, heads) = (31, 16);
            tracks = total / spt;
        }
        if tracks >= heads * 1024 {
            (spt, heads) = (63, 16);
            tracks = total / spt;
        }
    }
    let narrow = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    (
        u16::try_from(tracks / heads).unwrap_or(u16::MAX),
        narrow(heads),
        narrow(spt),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Bytes of the whole stream.
    fn length(pieces: &[Piece]) -> u64 {
        let of = |piece: &Piece| match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Block(_) => BLOCK_BYTES,
        };
        pieces.iter().map(of).sum()
    }

    #[test]
    fn geometry_is_the_one_other_tools_compute() {
        for (mib, expected) in [
            (64u64, (963, 8, 17)),
            (128, (963, 16, 17)),
            (512, (1040, 16, 63)),
            (1 << 10, (2080, 16, 63)),
            (64 << 10, (32896, 16, 255)),
            (1 << 20, (65535, 16, 255)),
        ] {
            assert_eq!(geometry(mib * 2048), expected, "{mib} MiB");
        }
    }

    /// The stream of a disk whose block `n` is filled with `n + 1`, written to a file.
    fn write(virtual_bytes: u64, has_data: &[bool]) -> tempfile::NamedTempFile {
        use std::io::Write;
        let pieces = plan(Uuid::from_u128(7), 1_800_000_000, virtual_bytes, has_data);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for piece in &pieces {
            match piece {
                Piece::Bytes(bytes) => file.write_all(bytes).unwrap(),
                Piece::Block(n) => file
                    .write_all(&vec![*n as u8 + 1; BLOCK_BYTES as usize])
                    .unwrap(),
            }
        }
        assert_eq!(file.as_file().metadata().unwrap().len(), length(&pieces));
        file
    }

    #[test]
    fn qemu_reads_what_is_written() {
        let has_data = [true, false, true, false];
        let file = write(8 << 20, &has_data);
        let raw = tempfile::NamedTempFile::new().unwrap();
        let done = Command::new("qemu-img")
            .args(["convert", "-f", "vpc", "-O", "raw"])
            .args([file.path(), raw.path()])
            .status()
            .expect("qemu-img is installed");
        assert!(done.success());
        let content = std::fs::read(raw.path()).unwrap();
        assert_eq!(content.len(), 8 << 20);
        for (n, block) in content.chunks(BLOCK_BYTES as usize).enumerate() {
            let expected = if has_data[n] { n as u8 + 1 } else { 0 };
            assert!(block.iter().all(|byte| *byte == expected), "block {n}");
        }
    }

    #[test]
    fn the_independent_checker_finds_nothing_wrong() {
        for (virtual_bytes, has_data) in [
            (2 << 20, vec![false]),
            (2 << 20, vec![true]),
            (300 << 20, vec![true; 3]),
        ] {
            let file = write(virtual_bytes, &has_data);
            let report = vhd_checker::check(file.path(), vhd_checker::Strictness::Closed).unwrap();
            assert!(report.problems.is_empty(), "{:?}", report.problems);
        }
    }
}
