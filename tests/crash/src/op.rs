//! What a workload is made of.

use std::fmt;
use std::str::FromStr;

/// What can be asked of a disk, and of the tree of images below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Into a block that the leaf does not have at first.
    WriteNew,
    /// Into a block that the leaf has from the beginning.
    WriteOld,
    /// Over the end of one block into the next.
    WriteAcross,
    /// The last sectors of the disk, which a resize moves.
    WriteEnd,
    /// Durable when it is answered.
    WriteFua,
    /// Trims.
    Trim,
    /// Writes zeroes over the end of a block.
    Zeroes,
    /// Flushes.
    Flush,
    /// Puts a new leaf on top; what is below is a snapshot from then on.
    Snapshot,
    /// A second disk on the topmost sealed image; seals one if there is none.
    Clone,
    /// The disk that came last goes; without a second disk the snapshot that came last.
    Delete,
    /// Grows the disk by a block.
    Resize,
    /// Closes the disk and opens it again.
    Close,
    /// Merges an image into its parent beside the guests of the disks above it.
    Coalesce,
    /// Merges the leaf of a disk in use into its parent.
    LeafCoalesce,
    /// Moves a disk in use to an image of its own.
    Mirror,
}

impl Op {
    /// All of them with their names.
    pub const ALL: [(Op, &str); 16] = [
        (Op::WriteNew, "write-new"),
        (Op::WriteOld, "write-old"),
        (Op::WriteAcross, "write-across"),
        (Op::WriteEnd, "write-end"),
        (Op::WriteFua, "write-fua"),
        (Op::Trim, "trim"),
        (Op::Zeroes, "zeroes"),
        (Op::Flush, "flush"),
        (Op::Snapshot, "snapshot"),
        (Op::Clone, "clone"),
        (Op::Delete, "delete"),
        (Op::Resize, "resize"),
        (Op::Close, "close"),
        (Op::Coalesce, "coalesce"),
        (Op::LeafCoalesce, "leaf-coalesce"),
        (Op::Mirror, "mirror"),
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Op> {
        Self::ALL.into_iter().map(|(op, _)| op)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(op, _)| *op == self);
        named.map_or("", |(_, name)| name)
    }

    /// Whether it is the owner of the tree who asks, and not the guest.
    pub fn is_of_owner(self) -> bool {
        use Op::{Clone, Close, Coalesce, Delete, LeafCoalesce, Mirror, Resize, Snapshot};
        let alone = matches!(self, Snapshot | Clone | Delete | Resize | Close);
        alone || matches!(self, Coalesce | LeafCoalesce | Mirror)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.iter().find(|(_, name)| *name == text);
        named
            .map(|(op, _)| *op)
            .ok_or_else(|| format!("no operation is called {text:?}"))
    }
}
