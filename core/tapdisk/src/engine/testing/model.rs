//! What each sector may read as: every value it had since the last answered flush, and no other.

use super::rig::SECTOR;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A sector's content, told by its first and last eight bytes; the rest is zero. Sectors are never
/// torn inside, so more would show nothing.
pub type Value = u64;

/// The bytes of sectors with these values.
pub fn sectors_of(values: impl ExactSizeIterator<Item = Value>) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * SECTOR as usize];
    for (sector, value) in bytes.chunks_exact_mut(SECTOR as usize).zip(values) {
        sector[..8].copy_from_slice(&value.to_le_bytes());
        sector[504..].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The value of a sector, or `None` if it is a mixture that nobody ever wrote.
pub fn value_of(sector: &[u8]) -> Option<Value> {
    let (first, last) = (sector.first_chunk::<8>()?, sector.last_chunk::<8>()?);
    (first == last).then(|| u64::from_le_bytes(*first))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    value: Value,
    /// The change was answered with success.
    acked: bool,
    /// The change may have had no effect: a trim, or one that failed.
    optional: bool,
    /// The change it belongs to.
    change: u64,
}

/// The history of each touched sector since its last durable version, that one included.
#[derive(Debug, Clone, Default)]
pub struct Model {
    sectors: BTreeMap<u64, Vec<Version>>,
    changes: u64,
}

/// What a flush will make durable, taken when it is submitted.
#[derive(Debug, Clone, Default)]
pub struct Covered(BTreeMap<u64, u64>);

impl Model {
    /// A change of some sectors is submitted; `optional` if it may leave the old content.
    pub fn change(
        &mut self,
        sectors: impl IntoIterator<Item = (u64, Value)>,
        optional: bool,
    ) -> u64 {
        self.changes += 1;
        let change = self.changes;
        for (sector, value) in sectors {
            let history = self.sectors.entry(sector).or_insert_with(|| {
                vec![Version {
                    value: 0,
                    acked: true,
                    optional: false,
                    change: 0,
                }]
            });
            history.push(Version {
                value,
                acked: false,
                optional,
                change,
            });
        }
        change
    }

    /// The change was answered. One that failed may have happened in part.
    pub fn answered(&mut self, change: u64, ok: bool) {
        let versions = self.sectors.values_mut().flatten();
        for version in versions.filter(|version| version.change == change) {
            version.acked = true;
            version.optional |= !ok;
        }
    }

    /// A flush is submitted now.
    pub fn flush_begins(&self) -> Covered {
        let last_sure = |history: &[Version]| {
            history
                .iter()
                .rev()
                .find(|v| v.acked && !v.optional)
                .map(|v| v.change)
        };
        let covered = self.sectors.iter();
        Covered(
            covered
                .filter_map(|(s, history)| Some((*s, last_sure(history)?)))
                .collect(),
        )
    }

    /// That flush was answered with success.
    pub fn flushed(&mut self, covered: &Covered) {
        for (sector, change) in &covered.0 {
            if let Some(history) = self.sectors.get_mut(sector) {
                history.retain(|version| version.change >= *change);
            }
        }
    }

    /// A change answered with FUA: it is durable by itself, whatever else is.
    pub fn durable(&mut self, change: u64) {
        for history in self.sectors.values_mut() {
            if history
                .iter()
                .any(|version| version.change == change && !version.optional)
            {
                history.retain(|version| version.change >= change);
            }
        }
    }

    /// The disk was opened after a power cut or a kill, and the sector reads so. From now on it does
    /// not change by itself: recovery that comes later must find the same.
    pub fn found(&mut self, sector: u64, value: Value) {
        let version = Version {
            value,
            acked: true,
            optional: false,
            change: self.changes,
        };
        self.sectors.insert(sector, vec![version]);
    }

    /// Equal for models that judge any files equally.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (sector, history) in &self.sectors {
            let legal: BTreeSet<Value> = history.iter().map(|version| version.value).collect();
            (sector, legal).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Sectors ever touched.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        self.sectors.keys().copied()
    }

    /// Whether the sector may read so after a crash now.
    pub fn is_legal(&self, sector: u64, value: Value) -> bool {
        match self.sectors.get(&sector) {
            Some(history) => history.iter().any(|version| version.value == value),
            None => value == 0,
        }
    }

    /// Whether a read now, with nothing in flight, may give this.
    pub fn is_current(&self, sector: u64, value: Value) -> bool {
        let Some(history) = self.sectors.get(&sector) else {
            return value == 0;
        };
        let sure = history
            .iter()
            .rposition(|version| !version.optional)
            .unwrap_or(0);
        history
            .iter()
            .skip(sure)
            .any(|version| version.value == value)
    }

    /// The legal values of a sector, for messages.
    pub fn describe(&self, sector: u64) -> String {
        format!("{:?}", self.sectors.get(&sector))
    }
}
