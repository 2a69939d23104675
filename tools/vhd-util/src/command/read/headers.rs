//! The metadata of an image as text for people.

use crate::Disk;
use std::io::{self, Write};
use vhd_rs::{BatmapHeader, DiskType, Footer, Header, Image};

/// Prints footer, header, locators and batmap header.
pub(super) fn print(disk: &Disk, out: &mut dyn Write) -> io::Result<()> {
    print_footer(&disk.image, disk.image.footer(), out)?;
    if let Some(header) = disk.image.header() {
        writeln!(out)?;
        print_header(&disk.image, header, out)?;
    }
    if let Some(batmap) = disk.image.batmap() {
        writeln!(out)?;
        print_batmap(batmap.header(), out)?;
    }
    Ok(())
}

fn print_footer(image: &Image, footer: &Footer, out: &mut dyn Write) -> io::Result<()> {
    let kind = match footer.disk_type {
        DiskType::Fixed => "fixed",
        DiskType::Dynamic => "dynamic",
        DiskType::Differencing => "differencing",
    };
    let cookie = if image.is_poisoned() {
        "v_poison"
    } else {
        "conectix"
    };
    let application = footer.creator.application;
    let application = application.escape_ascii();
    let (major, minor) = (
        footer.creator.version >> 16,
        footer.creator.version & 0xffff,
    );
    let geometry = footer.geometry;
    writeln!(out, "Footer")?;
    writeln!(out, "  Cookie            : {cookie}")?;
    writeln!(out, "  Features          : {:#010x}", footer.features)?;
    match footer.header_offset {
        Some(offset) => writeln!(out, "  Header at         : {offset}")?,
        None => writeln!(out, "  Header at         : none")?,
    }
    writeln!(
        out,
        "  Created           : {} (unix time)",
        footer.created.unix_s()
    )?;
    writeln!(out, "  Creator           : {application} {major}.{minor}")?;
    writeln!(out, "  Original size     : {}", footer.original_bytes)?;
    writeln!(out, "  Current size      : {}", footer.virtual_bytes)?;
    writeln!(
        out,
        "  Geometry          : {}/{}/{}",
        geometry.cylinders, geometry.heads, geometry.sectors_per_track
    )?;
    writeln!(out, "  Type              : {kind}")?;
    writeln!(out, "  UUID              : {}", footer.uuid)?;
    writeln!(out, "  Saved state       : {}", footer.saved_state)?;
    writeln!(out, "  Hidden            : {}", footer.hidden)?;
    writeln!(out, "  Closed            : {}", image.is_clean())
}

fn print_header(image: &Image, header: &Header, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Header")?;
    writeln!(out, "  Table at          : {}", header.table_offset)?;
    writeln!(out, "  Table entries     : {}", header.max_table_entries)?;
    writeln!(out, "  Block size        : {}", header.block_bytes)?;
    writeln!(out, "  Allocated blocks  : {}", image.allocated_blocks())?;
    if image.parent_uuid().is_none() {
        return Ok(());
    }
    let modified = header.parent_modified.unix_s();
    writeln!(out, "  Parent name       : {}", header.parent_name)?;
    writeln!(out, "  Parent UUID       : {}", header.parent_uuid)?;
    writeln!(out, "  Parent changed    : {modified} (unix time)")?;
    for locator in image.locators() {
        let path = locator.path().unwrap_or_else(|e| e.to_string());
        writeln!(
            out,
            "  Locator {}         : {:?} at {}, {} of {} bytes: {path}",
            locator.index,
            locator.entry.code,
            locator.entry.data_offset,
            locator.entry.data_len,
            locator.entry.space_bytes()
        )?;
    }
    Ok(())
}

fn print_batmap(header: &BatmapHeader, out: &mut dyn Write) -> io::Result<()> {
    let encrypted = header.keyhash().is_some();
    writeln!(out, "Batmap")?;
    writeln!(out, "  Map at            : {}", header.map_offset)?;
    writeln!(out, "  Map sectors       : {}", header.map_sectors)?;
    writeln!(out, "  Version           : {:#010x}", header.version)?;
    writeln!(out, "  Checksum          : {:#010x}", header.checksum)?;
    writeln!(out, "  Marker            : {}", header.marker)?;
    writeln!(out, "  Encrypted         : {encrypted}")
}
