//! The VHD disk format: footers, headers, block tables, bitmaps, batmaps, locators, chains.
//!
//! The crate reads and plans *metadata*. It never touches payload: it says where a block's data
//! lies and which metadata writes, in which order, make a change safe; the caller does the I/O
//! with whatever it has (threads, io_uring, a simulator). It follows the habits of XenServer's
//! tools to the byte (batmap, 4 KiB alignment, relative locators) and reads what qemu and
//! Microsoft's tools write.
//!
//! # Layout of a file
//!
//! ```text
//!  0          512       1536                                                        end
//!  +----------+---------+-----+------------+--------+----------+-----+--//--+---------+
//!  | copy of  | sparse  | BAT | batmap     | batmap | parent   | gap | blocks| footer |
//!  | footer   | header  |     | header 512 |        | locators |     |       | 512    |
//!  +----------+---------+-----+------------+--------+----------+-----+--//--+---------+
//!
//!  a block:  | gap to 4096 | bitmap 512 | data 2 MiB |      BAT entry = sector of the bitmap
//!            |  7 sectors  |  1 sector  |            |      bit set   = sector is in this file
//! ```
//!
//! A *fixed* disk is its data and one footer after it. In a *dynamic* disk what is not present is
//! zero; in a *differencing* disk it is the parent's. On a block device the footer is in the last
//! sector ([`Extent::Reserved`]).
//!
//! # Reading a table
//!
//! ```no_run
//! use vhd_rs::{Block, Image, OpenOptions};
//!
//! let file = std::fs::File::open("disk.vhd")?;
//! let image = Image::open(&file, OpenOptions::default())?;
//! println!("{} bytes, {:?}", image.virtual_bytes(), image.disk_type());
//! for n in 0..image.blocks() {
//!     if let Block::Allocated { data_offset, full, .. } = image.block(n) {
//!         println!("block {n} at byte {data_offset}, complete: {full}");
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Reading a disk
//!
//! A sector of a disk without a parent; with one, `None` of the last two arms is the parent's.
//!
//! ```
//! use vhd_rs::{Block, Image, ReadAt, bitmap};
//!
//! fn sector(file: &impl ReadAt, image: &Image, n: u64) -> std::io::Result<Option<[u8; 512]>> {
//!     let (block, inside, mut data) = ((n / 4096) as u32, n % 4096, [0; 512]);
//!     let data_offset = match image.block(block) {
//!         Block::Fixed { data_offset } => data_offset,
//!         Block::Allocated { data_offset, bitmap_offset, .. } => {
//!             file.read_exact_at(bitmap_offset, &mut data)?;
//!             if bitmap::get(&data, inside as u32) { data_offset } else { return Ok(None) }
//!         }
//!         Block::Unallocated => return Ok(None),
//!     };
//!     file.read_exact_at(data_offset + inside * 512, &mut data).map(|()| Some(data))
//! }
//!
//! # use vhd_rs::*;
//! # let new = NewImage { uuid: uuid::Uuid::from_u128(1), created: Timestamp(0), virtual_bytes: 4 << 20,
//! #     resize_max_bytes: 0, content: Content::Dynamic, extent: Extent::Grows, container_bytes: 0 };
//! # let mut file = Vec::new();
//! # new.plan()?.apply(&mut file)?;
//! # let mut image = Image::open(&file, OpenOptions { access: Access::ReadWrite, ..Default::default() })?;
//! # let place = image.reserve(1)?;
//! # file.write_all_at(place.end_offset, &[0; 512])?;
//! # file.write_all_at(place.bitmap_offset, &[0x40])?;
//! # file.write_all_at(place.data_offset + 512, &[7; 512])?;
//! # image.commit(&place)?;
//! # image.close_plan()?.apply(&mut file)?;
//! assert_eq!(sector(&file, &image, 4097)?, Some([7; 512]));
//! assert_eq!(sector(&file, &image, 4096)?, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Making and changing images
//!
//! [`NewImage::plan`] and the `*_plan` methods of [`Image`] return a [`Plan`]: writes, size
//! changes and flushes in order. [`Plan::apply`] performs one on a file; a data path performs it
//! by its own means. See [`Image`] for who must order what while a disk is being written.
//!
//! # Errors and hostile input
//!
//! Every refusal is an [`Error`] with an [`ErrorKind`] to branch on and the field, the value and
//! the rule to show. Opening takes memory in proportion to the used part of the block table, which
//! must lie inside the file, and time O(n log n) in its entries; no bytes make it panic.
//!
//! # What the crate does not do
//!
//! Payload I/O, following a locator to a file (paths are text of unknown origin), performing the
//! resizes it describes (see [`Image::relayout`] and [`journal`]), blocks of other
//! sizes than 2 MiB except for reading. The data of encrypted images goes through `Cipher` (feature
//! `cipher`), in the caller's hands.

#![forbid(unsafe_code)]

mod bat;
mod batmap;
pub mod bitmap;
pub mod cbt;
mod chain;
#[cfg(feature = "cipher")]
mod cipher;
mod create;
mod error;
mod footer;
mod geometry;
mod header;
mod image;
pub mod journal;
mod keyhash;
mod locator;
mod plan;
mod read;
mod wire;

pub use bat::Bat;
pub use batmap::{BATMAP_HEADER_BYTES, Batmap, BatmapHeader};
pub use chain::{CHAIN_DEPTH_MAX, Layer, check_chain, check_link};
#[cfg(feature = "cipher")]
pub use cipher::Cipher;
pub use create::{Content, NewImage, ParentLink};
pub use error::{Error, ErrorKind};
pub use footer::{Creator, DiskType, FOOTER_BYTES, Footer, Timestamp};
pub use geometry::Geometry;
pub use header::{HEADER_BYTES, Header, LOCATORS};
pub use image::{
    Access, Allocation, Allow, Block, BlockMove, Extent, Image, OpenOptions, Relayout, Save,
    SectorWrite,
};
pub use keyhash::Keyhash;
pub use locator::{LOCATOR_BYTES_MAX, Locator, LocatorCode, LocatorEntry};
pub use plan::{Plan, Step, WriteAt};
pub use read::ReadAt;
pub use wire::{SECTOR_BYTES, checksum};

/// Bytes in a block of every image this crate creates or writes to.
pub const BLOCK_BYTES: u32 = 2 << 20;

/// Largest virtual size of a sparse image that is opened or made: 16 TiB. It bounds the memory an
/// open takes (32 MiB of table). A file holds at most 2 TiB of it, as sector numbers have 32 bits.
pub const VIRTUAL_BYTES_MAX: u64 = 16 << 40;
