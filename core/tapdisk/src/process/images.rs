//! Operations on an image that nobody has open: create, query, resize, hide.
//!
//! They read and write metadata only and block while they do.

use datapath::protocol::{Error, ErrorKind, Extent, ImageInfo, ParentRef};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use uuid::Uuid;
use vhd_rs::{Content, Image, NewImage, OpenOptions, ParentLink, Plan, Timestamp};

/// What `image-create` asks for.
#[derive(Debug)]
pub(super) struct Create {
    pub(super) uuid: Uuid,
    pub(super) virtual_bytes: u64,
    pub(super) resize_max_bytes: u64,
    pub(super) parent: Option<ParentRef>,
    pub(super) extent: Extent,
}

/// Writes a new image, unless the container holds it already (a repeated call).
pub(super) fn create(mut container: File, new: Create) -> Result<ImageInfo, Error> {
    let container_bytes = size_bytes(&mut container)?;
    match open(&container, new.extent, vhd_rs::Access::ReadOnly) {
        Ok(image) if image.uuid() == new.uuid => return Ok(describe(&image)),
        // A reserved container may show what was on its sectors before it was made.
        Ok(image) if new.extent == Extent::Grows => {
            let message = format!("the container holds image {} already", image.uuid());
            return Err(Error::new(ErrorKind::Busy, message));
        }
        _ => {}
    }
    let content = match new.parent {
        None => Content::Dynamic,
        Some(parent) => Content::Differencing(link(parent)),
    };
    let image = NewImage {
        uuid: new.uuid,
        created: Timestamp::from_unix_s(now_unix_s()),
        virtual_bytes: new.virtual_bytes,
        resize_max_bytes: new.resize_max_bytes,
        content,
        extent: extent(new.extent),
        container_bytes,
    };
    perform(image.plan().map_err(refused)?, &mut container)?;
    open(&container, new.extent, vhd_rs::Access::ReadOnly).map(|image| describe(&image))
}

/// Reads an image's description.
pub(super) fn query(container: &File, extent: Extent) -> Result<ImageInfo, Error> {
    open(container, extent, vhd_rs::Access::ReadOnly).map(|image| describe(&image))
}

/// Grows an image; a size it has already is a success.
pub(super) fn resize(
    mut container: File,
    extent: Extent,
    virtual_bytes: u64,
) -> Result<ImageInfo, Error> {
    let mut image = open(&container, extent, vhd_rs::Access::ReadWrite)?;
    if image.virtual_bytes() != virtual_bytes {
        perform(
            image.resize_plan(virtual_bytes).map_err(refused)?,
            &mut container,
        )?;
    }
    Ok(describe(&image))
}

/// Sets or clears the hidden flag.
pub(super) fn hide(mut container: File, extent: Extent, hidden: bool) -> Result<(), Error> {
    let mut image = open(&container, extent, vhd_rs::Access::ReadWrite)?;
    if image.is_hidden() == hidden && image.is_clean() {
        return Ok(());
    }
    perform(image.hide_plan(hidden).map_err(refused)?, &mut container)
}

/// Enters another parent, in one step if a crash comes.
pub(super) fn reparent(
    mut container: File,
    extent: Extent,
    parent: ParentRef,
) -> Result<(), Error> {
    let mut image = open(&container, extent, vhd_rs::Access::ReadWrite)?;
    let plan = image.relink_plan(&link(parent)).map_err(refused)?;
    perform(plan, &mut container)
}

/// A parent as the format has it.
pub(super) fn link(parent: ParentRef) -> ParentLink {
    ParentLink {
        path: parent.name,
        uuid: parent.uuid,
        modified: Timestamp::from_unix_s(parent.mtime_unix_s),
    }
}

fn open(
    container: &File,
    container_extent: Extent,
    access: vhd_rs::Access,
) -> Result<Image, Error> {
    let options = OpenOptions {
        extent: extent(container_extent),
        access,
    };
    Image::open(container, options).map_err(refused)
}

fn perform(plan: Plan, container: &mut File) -> Result<(), Error> {
    plan.apply(container).map_err(refused)
}

fn describe(image: &Image) -> ImageInfo {
    ImageInfo {
        uuid: image.uuid(),
        parent_uuid: image.parent_uuid(),
        parent_name: image.parent_path(),
        virtual_bytes: image.virtual_bytes(),
        resize_max_bytes: image.resize_max_bytes(),
        allocated_blocks: image.allocated_blocks(),
        hidden: image.is_hidden(),
        clean: image.is_clean(),
    }
}

/// The protocol's word for how a container ends, in the format's.
pub(super) fn extent(extent: Extent) -> vhd_rs::Extent {
    match extent {
        Extent::Grows => vhd_rs::Extent::Grows,
        Extent::Reserved => vhd_rs::Extent::Reserved,
    }
}

/// An error of the format as an error of the protocol.
pub(super) fn refused(e: vhd_rs::Error) -> Error {
    use vhd_rs::ErrorKind as Vhd;
    let kind = match e.kind() {
        Vhd::NotVhd | Vhd::Corrupt | Vhd::Checksum => ErrorKind::Corrupt,
        Vhd::ParentMismatch | Vhd::ChainLoop | Vhd::ChainTooDeep => ErrorKind::Chain,
        Vhd::NoSpace => ErrorKind::NoSpace,
        Vhd::Io => io_kind(&e),
        _ => ErrorKind::Unsupported,
    };
    let source = std::error::Error::source(&e)
        .map(|s| format!(": {s}"))
        .unwrap_or_default();
    Error::new(kind, format!("{e}{source}"))
}

fn io_kind(e: &vhd_rs::Error) -> ErrorKind {
    let source = std::error::Error::source(e).and_then(|s| s.downcast_ref::<std::io::Error>());
    let full = [
        std::io::ErrorKind::StorageFull,
        std::io::ErrorKind::QuotaExceeded,
    ];
    match source {
        Some(io) if full.contains(&io.kind()) => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    }
}

/// Size of a file or a block device.
fn size_bytes(container: &mut File) -> Result<u64, Error> {
    container.seek(SeekFrom::End(0)).map_err(|e| {
        Error::new(
            ErrorKind::Io,
            format!("cannot tell the container's size: {e}"),
        )
    })
}

fn now_unix_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
