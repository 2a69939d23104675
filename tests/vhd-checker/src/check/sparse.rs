//! The checks of dynamic and differencing images: header, table, batmap, blocks and their places.

use super::{End, Place, Report, Strictness};
use crate::locators;
use crate::raw::{Raw, bit, num, sectors, sum_without, text, zero};
use std::collections::BTreeMap;
use std::io;

const MIB2: u64 = 2 * 1024 * 1024;

/// A dynamic or differencing image while it is looked at. `places` maps the first byte of each
/// region to its end and its name.
pub(super) struct Sparse<'a> {
    raw: &'a Raw,
    footer: &'a [u8],
    end: End,
    header: Vec<u8>,
    places: BTreeMap<u64, (u64, String)>,
    /// Where the sectors kept for the batmap end, used or not.
    batmap_end: u64,
    report: &'a mut Report,
}

impl<'a> Sparse<'a> {
    pub(super) fn check(
        raw: &'a Raw,
        footer: &'a [u8],
        end: End,
        report: &'a mut Report,
    ) -> io::Result<()> {
        let header_at = num(footer, 16, 8);
        let header = raw.piece(header_at, 1024)?;
        let places = BTreeMap::new();
        let mut me = Self {
            raw,
            footer,
            end,
            header,
            places,
            batmap_end: 0,
            report,
        };
        me.place(0, 512, "footer copy");
        me.place(header_at, 1024, "header");
        if !me.check_header() {
            return Ok(());
        }
        me.check_parent()?;
        let table_at = num(&me.header, 16, 8);
        let table_room = sectors(num(&me.header, 28, 4) * 4) * 512;
        me.place(table_at, table_room, "table");
        let map = me.check_batmap(table_at.saturating_add(table_room))?;
        let headers_end = me.data_end().max(me.batmap_end);
        me.check_blocks(table_at, map.as_deref(), headers_end)?;
        me.check_end(headers_end);
        Ok(())
    }

    fn place(&mut self, at: u64, len: u64, name: impl Into<String>) {
        let name = name.into();
        let Some(end) = at.checked_add(len) else {
            return self.report.add(format!("{name} wraps"));
        };
        if end > self.raw.len && !name.starts_with("block") {
            return self.report.add(format!("{name} lies beyond the file"));
        }
        let before = self.places.range(..end).next_back();
        if let Some((_, (other_end, other))) = before
            && *other_end > at
        {
            self.report.add(format!("{name} overlaps {other}"));
        }
        self.places.insert(at, (end, name));
    }

    fn data_end(&self) -> u64 {
        self.places.values().map(|(end, _)| *end).max().unwrap_or(0)
    }

    fn is_tap(&self) -> bool {
        text(self.footer, 28, 3) == b"tap"
    }

    fn check_header(&mut self) -> bool {
        let h = &self.header;
        if text(h, 0, 8) != b"cxsparse" || num(h, 36, 4) != sum_without(h, Some(36)) {
            self.report.add("header is invalid");
            return false;
        }
        self.report.want(num(h, 8, 8) == u64::MAX, || {
            "header points at another".into()
        });
        self.report
            .want(num(h, 24, 4) == 0x10000, || "header version".into());
        self.report.want(zero(h, 768, 256) && zero(h, 60, 4), || {
            "header's reserved area".into()
        });
        self.report.want(num(h, 16, 8).is_multiple_of(512), || {
            "table is not at a sector".into()
        });
        if num(h, 32, 4) != MIB2 {
            self.report.add(format!(
                "block size {} is not checked further",
                num(h, 32, 4)
            ));
            return false;
        }
        let needed = num(self.footer, 48, 8).div_ceil(MIB2);
        if num(h, 28, 4) < needed {
            self.report
                .add(format!("table has {} entries of {needed}", num(h, 28, 4)));
            return false;
        }
        true
    }

    fn check_parent(&mut self) -> io::Result<()> {
        if num(self.footer, 60, 4) == 3 {
            let none = zero(&self.header, 40, 20) && zero(&self.header, 64, 704);
            self.report
                .want(none, || "dynamic disk with a parent".into());
            return Ok(());
        }
        let found = locators::read(self.raw, &self.header)?;
        let name = locators::stored_name(&self.header);
        self.report.want(!found.is_empty(), || {
            "differencing disk without locators".into()
        });
        for (i, locator) in found.iter().enumerate() {
            if let Some(wrong) = &locator.wrong {
                self.report.add(wrong.clone());
                continue;
            }
            self.place(locator.at, locator.space, format!("locator {i}"));
            let again = found[..i].iter().any(|other| other.code == locator.code);
            self.report
                .want(!again, || format!("locator {i} repeats a code"));
            let base = locator.path.as_deref().and_then(|p| p.rsplit('/').next());
            self.report.want(base == name.as_deref(), || {
                format!("locator {i} says {:?}, the header {name:?}", locator.path)
            });
        }
        Ok(())
    }

    /// The batmap's used bytes, if there is one to go by.
    fn check_batmap(&mut self, at: u64) -> io::Result<Option<Vec<u8>>> {
        let version = num(self.footer, 32, 4);
        if !self.is_tap() || version < 0x10001 {
            return Ok(None);
        }
        let h = self.raw.piece(at, 512)?;
        if text(&h, 0, 8) != b"tdbatmap" {
            // The first version that could have one did not always.
            self.report
                .want(version == 0x10001, || "batmap header is missing".into());
            return Ok(None);
        }
        let used = sectors(num(self.footer, 48, 8) / (16 << 20)) * 512;
        let (map_at, room) = (num(&h, 8, 8), num(&h, 16, 4) * 512);
        self.place(at, 512, "batmap header");
        self.place(map_at, used, "batmap");
        self.batmap_end = map_at.saturating_add(room);
        self.report.want(room >= used, || {
            format!("batmap has {room} bytes of {used}")
        });
        let map = self.raw.piece(map_at, used)?;
        let sum = match num(&h, 20, 4) {
            0x10001 => {
                let total: i64 = map.iter().map(|b| i64::from(*b as i8)).sum();
                u64::from(!(total as u32))
            }
            0x10002 => sum_without(&map, None),
            version => {
                self.report.add(format!("batmap version {version:#x}"));
                return Ok(None);
            }
        };
        if sum == num(&h, 24, 4) {
            return Ok(Some(map));
        }
        if self.end.strictness == Strictness::Closed {
            self.report.add("batmap checksum is wrong");
        }
        Ok(None)
    }

    fn check_blocks(
        &mut self,
        table_at: u64,
        map: Option<&[u8]>,
        headers_end: u64,
    ) -> io::Result<()> {
        let count = num(self.footer, 48, 8).div_ceil(MIB2);
        let table = self.raw.piece(table_at, count * 4)?;
        let mut lost = 0;
        let mut full_blocks = Vec::new();
        for n in 0..count {
            let entry = num(&table, (n * 4) as usize, 4);
            let full = map.is_some_and(|map| bit(map, n));
            if entry == 0xFFFF_FFFF {
                self.report
                    .want(!full, || format!("block {n} is full but not allocated"));
                continue;
            }
            let whole = (entry + 1 + 4096) * 512;
            let on_volume = self.end.place == Place::Volume;
            let limit = if self.end.at_end || on_volume {
                self.raw.len - 512
            } else {
                self.raw.len
            };
            let crashed = self.end.strictness == Strictness::AfterCrash;
            let cut_short = !self.end.at_end && !on_volume && crashed && !full;
            if (entry + 1) * 512 > limit || (whole > limit && !cut_short) {
                self.report
                    .add(format!("block {n} at sector {entry} lies beyond the file"));
                continue;
            }
            lost += u64::from(whole > limit);
            self.place(entry * 512, 4097 * 512, format!("block {n}"));
            if self.is_tap() {
                self.report.want((entry + 1).is_multiple_of(8), || {
                    format!("block {n} is not aligned")
                });
            }
            if full {
                full_blocks.push((n, entry));
            }
        }
        for (n, entry) in full_blocks {
            self.check_full(n, entry, headers_end)?;
        }
        self.report
            .want(lost < 2, || format!("{lost} blocks are cut short"));
        Ok(())
    }

    fn check_full(&mut self, n: u64, entry: u64, headers_end: u64) -> io::Result<()> {
        let bitmap = self.raw.sector(entry)?;
        let all = bitmap.iter().all(|b| *b == 0xFF);
        self.report.want(all, || {
            format!("block {n} is full in the batmap, not in its bitmap")
        });
        let first_possible = headers_end.div_ceil(512);
        let is_first = entry >= first_possible && entry < first_possible + 8;
        let gap_at = entry.saturating_sub(7) * 512;
        let mut before = self.places.range(..entry * 512);
        let cramped = before
            .next_back()
            .is_some_and(|(_, (end, _))| *end > gap_at);
        self.report.want(is_first || !cramped, || {
            format!("full block {n} has no gap before it")
        });
        Ok(())
    }

    fn check_end(&mut self, headers_end: u64) {
        let end = self.data_end();
        let on_file = self.end.place == Place::File;
        if on_file && self.end.at_end && self.is_tap() && self.end.strictness == Strictness::Closed
        {
            // Not every tool counts the unused sectors kept for the batmap into the headers.
            let ends = [end + 512, end.max(headers_end) + 512];
            let exact = ends.contains(&self.raw.len);
            self.report.want(exact, || {
                format!("file has {} bytes, its data ends at {end}", self.raw.len)
            });
        }
    }
}
