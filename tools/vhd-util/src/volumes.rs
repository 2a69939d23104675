//! Logical volumes read by way of their group's physical volumes, so that they need not be active:
//! a repository has thousands, and activating one on a shared disk is a decision of its own. Where
//! their extents are is LVM's to say; its programs are asked once for the whole group.

use crate::{Error, Result, open_file};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use vhd_rs::{Access, ReadAt};

/// A logical volume.
#[derive(Debug)]
pub(crate) struct Volume {
    /// Its name in the group.
    pub(crate) name: String,
    size_bytes: u64,
    segments: Vec<Segment>,
    /// A part of it is of a kind that is not read here.
    unreadable: Option<String>,
}

/// A part of a volume that lies in one piece on a device.
#[derive(Debug)]
struct Segment {
    start: u64,
    len: u64,
    device: Rc<File>,
    offset: u64,
}

/// Where extents begin on a group's devices.
struct Group {
    extent_bytes: u64,
    devices: BTreeMap<String, (Rc<File>, u64)>,
}

/// All volumes of a group, by name.
///
/// # Errors
/// `EINVAL` if LVM knows no such group or says what is not understood; those of its devices.
pub(crate) fn volumes(group: &str) -> Result<Vec<Volume>> {
    let layout = read_group(group)?;
    let fields = "lv_name,lv_size,seg_start,seg_size,seg_pe_ranges";
    let mut volumes: BTreeMap<String, Volume> = BTreeMap::new();
    for line in ask("lvs", &["--segments", "-o", fields], group)? {
        let [name, size, start, len, ranges] = line.as_slice() else {
            return Err(not_understood("lvs", &line));
        };
        let number = |text: &String| text.parse().map_err(|_| not_understood("lvs", &line));
        let (size_bytes, start, len) = (number(size)?, number(start)?, number(len)?);
        let volume = volumes.entry(name.clone()).or_insert_with(|| Volume {
            name: name.clone(),
            size_bytes,
            segments: Vec::new(),
            unreadable: None,
        });
        match layout.find(ranges) {
            Some((device, offset)) => volume.segments.push(Segment {
                start,
                len,
                device,
                offset,
            }),
            None => volume.unreadable = Some(ranges.clone()),
        }
    }
    Ok(volumes.into_values().collect())
}

fn read_group(group: &str) -> Result<Group> {
    let mut layout = Group {
        extent_bytes: 0,
        devices: BTreeMap::new(),
    };
    for line in ask("vgs", &["-o", "vg_extent_size,pv_name,pe_start"], group)? {
        let numbers = match line.as_slice() {
            [extent, device, start] => extent
                .parse()
                .ok()
                .zip(start.parse().ok())
                .map(|(extent, start)| (extent, device, start)),
            _ => None,
        };
        let (extent, device, start) = numbers.ok_or_else(|| not_understood("vgs", &line))?;
        let (file, _) = open_file(Path::new(device), Access::ReadOnly)?;
        layout.extent_bytes = extent;
        layout
            .devices
            .insert(device.clone(), (Rc::new(file), start));
    }
    Ok(layout)
}

impl Group {
    /// The place of a range such as `/dev/sda:10-19`; `None` for several, as of striped volumes.
    fn find(&self, ranges: &str) -> Option<(Rc<File>, u64)> {
        let (device, range) = ranges.rsplit_once(':')?;
        let first: u64 = range.split_once('-')?.0.parse().ok()?;
        let (file, start) = self.devices.get(device)?;
        let offset = first.checked_mul(self.extent_bytes)?.checked_add(*start)?;
        Some((Rc::clone(file), offset))
    }
}

/// Asks one of LVM's programs about a group; returns its lines as fields.
fn ask(program: &str, options: &[&str], group: &str) -> Result<Vec<Vec<String>>> {
    let output = Command::new(program)
        .args(["--noheadings", "--nosuffix", "--units", "b"])
        .args(["--separator", "|"])
        .args(options)
        .args(["--", group])
        .output()
        .map_err(|e| Error::io(format!("cannot run {program} of LVM"), e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::invalid(format!(
            "{program} {group}: {}",
            said.trim()
        )));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let fields = |line: &str| line.trim().split('|').map(str::to_owned).collect();
    Ok(text.lines().map(fields).collect())
}

fn not_understood(program: &str, line: &[String]) -> Error {
    Error::invalid(format!("{program} says {}", line.join("|")))
}

impl Volume {
    /// Checks that all of it can be read.
    ///
    /// # Errors
    /// `ENOSYS` for striped and other volumes.
    pub(crate) fn check_readable(&self) -> Result<()> {
        match &self.unreadable {
            None => Ok(()),
            Some(ranges) => Err(Error::new(
                Errno::NOSYS,
                format!("{} is not linear: {ranges}", self.name),
            )),
        }
    }
}

impl ReadAt for Volume {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.size_bytes)
    }

    fn read_exact_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let holds = |s: &&Segment| (s.start..s.start.saturating_add(s.len)).contains(&offset);
            let segment = self.segments.iter().find(holds);
            let segment = segment.ok_or(io::ErrorKind::UnexpectedEof)?;
            let inside = offset - segment.start;
            let count = (segment.len - inside).min(buffer.len() as u64);
            let (now, later) = buffer.split_at_mut(count as usize);
            ReadAt::read_exact_at(&*segment.device, segment.offset + inside, now)?;
            offset += count;
            buffer = later;
        }
        Ok(())
    }
}

/// The name of a volume whose device mapper name this is, if it is one of the group.
pub(crate) fn name_in_group(mapped: &str, group: &str) -> Option<String> {
    let prefix = format!("{}-", group.replace('-', "--"));
    Some(mapped.strip_prefix(&prefix)?.replace("--", "-"))
}
