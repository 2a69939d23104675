//! Regions of a file: that each lies inside it, and that no two overlap.

use crate::{Error, ErrorKind};
use std::fmt;

/// Whose bytes a region holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    FooterCopy,
    Header,
    Table,
    BatmapHeader,
    Batmap,
    Locator(usize),
    Block(u32),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FooterCopy => f.write_str("footer copy"),
            Self::Header => f.write_str("header"),
            Self::Table => f.write_str("bat"),
            Self::BatmapHeader => f.write_str("batmap header"),
            Self::Batmap => f.write_str("batmap"),
            Self::Locator(index) => write!(f, "locator[{index}]"),
            Self::Block(block) => write!(f, "bat[{block}]"),
        }
    }
}

/// A range of bytes and its owner. Orders by place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) owner: Owner,
}

impl Region {
    /// A region of `len` bytes, which must end by `limit`.
    pub(super) fn new(owner: Owner, start: u64, len: u64, limit: u64) -> Result<Self, Error> {
        match start.checked_add(len).filter(|&end| end <= limit) {
            Some(end) => Ok(Self { start, end, owner }),
            None => {
                let value = format!("{len} bytes at byte {start}");
                let rule = format!("must end by byte {limit}");
                Err(Error::corrupt(owner.to_string(), value, rule))
            }
        }
    }
}

/// Sorts regions by place and refuses overlaps, naming both owners.
pub(super) fn sort_disjoint(regions: &mut [Region]) -> Result<(), Error> {
    regions.sort_unstable();
    for pair in regions.windows(2) {
        if let [first, second] = pair
            && second.start < first.end
        {
            let value = format!("at bytes {} to {}", second.start, second.end);
            let rule = format!(
                "must not overlap {} at bytes {} to {}",
                first.owner, first.start, first.end
            );
            return Err(Error::new(
                ErrorKind::Corrupt,
                second.owner.to_string(),
                value,
                rule,
            ));
        }
    }
    Ok(())
}
