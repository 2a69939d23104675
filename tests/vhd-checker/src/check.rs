//! The checks. Each finding is a sentence; nothing is thrown, everything that can still be looked
//! at is looked at.

use crate::geometry;
use crate::raw::{Raw, num, sum_without, text, zero};
use sparse::Sparse;
use std::fmt;
use std::io;
use std::path::Path;

mod sparse;

/// How the end of an image is to be taken.
#[derive(Clone, Copy)]
struct End {
    /// The footer there is good.
    at_end: bool,
    place: Place,
    strictness: Strictness,
}

/// How an image was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// It was closed: both footers are there and equal, and the file ends right after its data.
    Closed,
    /// Its writer may have died at any instant: the footer at the end may be missing, a batmap of
    /// wrong checksum says nothing, the last block may be cut short.
    AfterCrash,
}

/// What an image is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A file, which ends with its footer, right after the data.
    File,
    /// A block device or volume, or a file that stands for one: the footer is in the last sector,
    /// wherever data ends, and stays there while the image is written.
    Volume,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(pub String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order found; none means that the image is sound.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn add(&mut self, text: impl Into<String>) {
        self.problems.push(Problem(text.into()));
    }

    fn want(&mut self, good: bool, text: impl FnOnce() -> String) {
        if !good {
            self.add(text());
        }
    }
}

/// Checks one image in a file.
///
/// # Errors
/// Only if the file cannot be read; a file that is no VHD is a problem in the report.
pub fn check(path: &Path, strictness: Strictness) -> io::Result<Report> {
    check_in(path, Place::File, strictness)
}

/// Checks one image in a file or on a volume.
///
/// # Errors
/// Only if it cannot be read; one that is no VHD is a problem in the report.
pub fn check_in(path: &Path, place: Place, strictness: Strictness) -> io::Result<Report> {
    let raw = Raw::open(path)?;
    let mut report = Report::default();
    let Some((footer, at_end)) = find_footer(&raw, strictness, &mut report)? else {
        return Ok(report);
    };
    check_footer(&footer, &mut report);
    if place == Place::Volume {
        report.want(raw.len.is_multiple_of(512), || {
            format!("a volume of {} bytes is not whole sectors", raw.len)
        });
    }
    match num(&footer, 60, 4) {
        2 => {
            let room = raw.len - 512;
            report.want(num(&footer, 48, 8) <= room, || {
                "fixed data does not fit".into()
            });
            report.want(num(&footer, 16, 8) == u64::MAX, || {
                "fixed disk with a header".into()
            });
        }
        3 | 4 => {
            let end = End {
                at_end,
                place,
                strictness,
            };
            Sparse::check(&raw, &footer, end, &mut report)?;
        }
        other => report.add(format!("disk type {other}")),
    }
    Ok(report)
}

/// Checks that `parent` is the image that `child` names; `None` stands for a raw parent.
///
/// # Errors
/// Only if a file cannot be read.
pub fn check_link(child: &Path, parent: Option<&Path>) -> io::Result<Report> {
    let mut report = Report::default();
    let raw = Raw::open(child)?;
    let Some((footer, _)) = find_footer(&raw, Strictness::AfterCrash, &mut report)? else {
        return Ok(report);
    };
    report.want(num(&footer, 60, 4) == 4, || {
        "child is not differencing".into()
    });
    let header = raw.piece(num(&footer, 16, 8), 1024)?;
    let named = text(&header, 40, 16);
    let actual = match parent {
        None => vec![0; 16],
        Some(parent) => {
            let raw = Raw::open(parent)?;
            match find_footer(&raw, Strictness::AfterCrash, &mut report)? {
                None => return Ok(report),
                Some((footer, _)) => text(&footer, 68, 16).to_vec(),
            }
        }
    };
    report.want(named == actual, || {
        format!("child names parent {named:x?}, not {actual:x?}")
    });
    Ok(report)
}

/// The footer that counts, and whether it is the one at the end.
pub(crate) fn find_footer(
    raw: &Raw,
    strictness: Strictness,
    report: &mut Report,
) -> io::Result<Option<(Vec<u8>, bool)>> {
    let good = |f: &[u8]| {
        text(f, 0, 8) == b"conectix" && num(f, 64, 4) == sum_without(f, Some(64)) && f.len() == 512
    };
    let end = raw.piece(raw.len.saturating_sub(512), 512)?;
    let copy = raw.piece(0, 512)?;
    let copy_good = good(&copy) && num(&copy, 60, 4) != 2;
    if good(&end) {
        let fixed = num(&end, 60, 4) == 2;
        // Payload at the end of an image that was not closed may look like a footer.
        if fixed || !copy_good || text(&end, 68, 16) == text(&copy, 68, 16) {
            report.want(fixed || copy_good, || {
                "footer copy at offset 0 is invalid".into()
            });
            if copy_good && !fixed && strictness == Strictness::Closed {
                report.want(end == copy, || "the two footers differ".into());
            }
            return Ok(Some((end, true)));
        }
    }
    if strictness == Strictness::Closed {
        report.add("footer at the end is missing or invalid");
    }
    if !copy_good {
        report.add("no valid footer: not a VHD");
        return Ok(None);
    }
    Ok(Some((copy, false)))
}

fn check_footer(f: &[u8], report: &mut Report) {
    let size = num(f, 48, 8);
    report.want(num(f, 8, 4) & !1 == 2, || {
        format!("features {:#x}", num(f, 8, 4))
    });
    report.want(num(f, 12, 4) == 0x10000, || {
        format!("footer version {:#x}", num(f, 12, 4))
    });
    report.want(size > 0 && size.is_multiple_of(512), || {
        format!("virtual size {size}")
    });
    report.want(!zero(f, 68, 16), || "uuid is nil".into());
    report.want(f[85] < 2, || format!("hidden is {}", f[85]));
    report.want(zero(f, 86, 426), || {
        "footer's reserved area is not zero".into()
    });
    if text(f, 28, 3) == b"tap" {
        let version = num(f, 32, 4);
        let known = (0x10001..=0x10003).contains(&version);
        report.want(known, || format!("tap version {version:#x}"));
        let fits = num(f, 56, 4) <= geometry::largest(size);
        report.want(fits, || "geometry is too large".into());
    }
}
