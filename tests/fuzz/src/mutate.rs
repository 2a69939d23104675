//! Mutations of inputs that follow from a seed, for the tests. The search under coverage has its own.

use block::Rng;

/// Longest input made.
pub const BYTES_MAX: usize = 2048;

/// An input made from one of `corpus`, or from nothing.
pub fn mutated(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let pick = |rng: &mut Rng| {
        let at = rng.below(corpus.len().max(1) as u64) as usize;
        corpus.get(at).cloned().unwrap_or_default()
    };
    if corpus.is_empty() || rng.one_in(8) {
        let len = rng.below(400);
        return (0..len).map(|_| rng.next_u64() as u8).collect();
    }
    let mut bytes = pick(rng);
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.next_u64() as u8),
            2 => {
                let other = pick(rng);
                let from = rng.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(other.get(from..).unwrap_or_default());
            }
            3 => bytes.extend((0..rng.below(32)).map(|_| rng.next_u64() as u8)),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = match rng.below(3) {
                        0 => rng.next_u64() as u8,
                        1 => *byte ^ (1 << rng.below(8)),
                        _ => byte.wrapping_add(1),
                    };
                }
            }
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

/// The inputs in a folder, in order of their names; none if there is no folder.
///
/// # Errors
/// Those of reading.
pub fn read_corpus(folder: &std::path::Path) -> std::io::Result<Vec<Vec<u8>>> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    paths.iter().map(std::fs::read).collect()
}
