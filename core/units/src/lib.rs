//! Sizes, ids and names that every crate shares. No I/O.
//!
//! Ids are newtypes so that an SR's uuid cannot be handed over where a VDI's is wanted; names that
//! reach a file system or a command line are checked once, here, when they are made.

#![forbid(unsafe_code)]

mod ids;
mod names;

pub use ids::{HostUuid, SrUuid, VbdUuid, VdiUuid, VmUuid};
pub use names::{ContainerId, DpId, NameError, RequestId};

/// Bytes in a sector, everywhere: VHD, blkif, NBD clients and the API agree on it.
pub const SECTOR_BYTES: u64 = 512;

/// One KiB, MiB, GiB and TiB in bytes.
pub const KIB: u64 = 1 << 10;
/// See [`KIB`].
pub const MIB: u64 = 1 << 20;
/// See [`KIB`].
pub const GIB: u64 = 1 << 30;
/// See [`KIB`].
pub const TIB: u64 = 1 << 40;

/// Rounds `value` up to a multiple of `unit`; `None` on overflow or for a zero `unit`.
pub fn round_up(value: u64, unit: u64) -> Option<u64> {
    value
        .div_ceil(unit.max(1))
        .checked_mul(unit)
        .filter(|_| unit != 0)
}
