//! Latencies counted by size: what the data path fills, and how readers get quantiles out of it.
//!
//! Buckets are log-linear: four to each power of two, so a value is known to within a quarter. All
//! values are microseconds.
//!
//! ```text
//!  0 1 2 3 │ 4 5 6 7 │ 8-9 10-11 12-13 14-15 │ 16-19 20-23 24-27 28-31 │ 32-39 ...
//! ```

use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// Buckets of a histogram; the last one takes everything from 3758 seconds on.
pub const BUCKETS: usize = 124;

/// Buckets to a power of two, as a power of two.
const SUB_BITS: u32 = 2;

/// How often values of each size were seen. Counts only grow, so readers take differences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u64>", try_from = "Vec<u64>")]
pub struct Histogram {
    counts: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
        }
    }
}

/// The bucket that counts a value.
fn bucket_of(value: u64) -> usize {
    let exponent = value.checked_ilog2().unwrap_or(0).max(SUB_BITS);
    let shift = exponent - SUB_BITS;
    // The top bits of the value, its highest one included, follow on the buckets before.
    let bucket = u64::from(shift << SUB_BITS) + (value >> shift);
    usize::try_from(bucket).map_or(BUCKETS - 1, |bucket| bucket.min(BUCKETS - 1))
}

/// Smallest value of a bucket.
fn first_of(bucket: usize) -> u64 {
    let shift = (bucket >> SUB_BITS).saturating_sub(1);
    let top = (bucket - (shift << SUB_BITS)) as u64;
    top.checked_shl(shift as u32).unwrap_or(u64::MAX)
}

impl Histogram {
    /// Counts a value.
    pub fn record(&mut self, value_us: u64) {
        if let Some(count) = self.counts.get_mut(bucket_of(value_us)) {
            *count = count.saturating_add(1);
        }
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.counts
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The buckets that are not empty: which values they take, and how many they have.
    pub fn buckets(&self) -> impl Iterator<Item = (RangeInclusive<u64>, u64)> + '_ {
        let numbered = self.counts.iter().copied().enumerate();
        numbered
            .filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| (first_of(bucket)..=Self::last_of(bucket), count))
    }

    fn last_of(bucket: usize) -> u64 {
        if bucket + 1 < BUCKETS {
            first_of(bucket + 1) - 1
        } else {
            u64::MAX
        }
    }

    /// A value that at least `per_million` of a million values do not exceed: 500000 is the median,
    /// 999000 the 99.9th percentile. It is the upper end of the bucket, so never too small and at
    /// most a quarter too large; in the open last bucket its lower end. `None` without values.
    pub fn quantile_us(&self, per_million: u32) -> Option<u64> {
        let count = u128::from(self.count());
        // The rank of the value, counted from one.
        let rank = (count * u128::from(per_million.min(1_000_000))).div_ceil(1_000_000);
        let mut seen = 0;
        for (bucket, in_it) in self.counts.iter().enumerate() {
            seen += u128::from(*in_it);
            if seen >= rank.max(1) {
                let open = bucket + 1 == BUCKETS;
                return Some(if open {
                    first_of(bucket)
                } else {
                    Self::last_of(bucket)
                });
            }
        }
        None
    }

    /// What was counted since an earlier reading of the same histogram. Where that has more, the
    /// disk was opened anew and all of this is new.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = || self.counts.iter().zip(&earlier.counts);
        if pairs().any(|(now, before)| now < before) {
            return self.clone();
        }
        let mut counts = [0; BUCKETS];
        for (slot, (now, before)) in counts.iter_mut().zip(pairs()) {
            *slot = now - before;
        }
        Self { counts }
    }

    /// Adds another histogram, say that of another disk.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }
}

/// As it travels: the counts, without the zeros behind the last one.
impl From<Histogram> for Vec<u64> {
    fn from(histogram: Histogram) -> Self {
        let used = histogram.counts.iter().rposition(|count| *count > 0);
        let used = used.map_or(0, |last| last + 1);
        histogram.counts.into_iter().take(used).collect()
    }
}

impl TryFrom<Vec<u64>> for Histogram {
    type Error = String;

    fn try_from(found: Vec<u64>) -> Result<Self, String> {
        let mut counts = [0; BUCKETS];
        let Some(slots) = counts.get_mut(..found.len()) else {
            return Err(format!(
                "a histogram has {BUCKETS} buckets, this {}",
                found.len()
            ));
        };
        slots.copy_from_slice(&found);
        Ok(Self { counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|value| histogram.record(value));
        histogram
    }

    #[test]
    fn buckets_follow_on_each_other_and_are_a_quarter_wide() {
        let mut next = 0;
        for bucket in 0..BUCKETS {
            assert_eq!(first_of(bucket), next, "bucket {bucket}");
            let last = Histogram::last_of(bucket);
            for value in [next, last] {
                assert_eq!(bucket_of(value), bucket, "value {value}");
            }
            if bucket + 1 < BUCKETS {
                assert!(
                    (last - next) * 4 <= next,
                    "bucket {bucket}: {next} to {last}"
                );
                next = last + 1;
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_never_too_small_and_at_most_a_quarter_too_large() {
        let values: Vec<u64> = (1..=1000).map(|n| n * n).collect();
        let histogram = of(values.iter().copied());
        for (per_million, rank) in [
            (0, 1),
            (1000, 1),
            (500_000, 500),
            (999_000, 999),
            (1_000_000, 1000),
        ] {
            let exact = values[rank - 1];
            let found = histogram.quantile_us(per_million).unwrap();
            assert!(found >= exact, "{per_million}: {found} < {exact}");
            assert!(
                found <= exact + exact / 4,
                "{per_million}: {found} > {exact}"
            );
        }
        assert_eq!(Histogram::default().quantile_us(500_000), None);
        assert_eq!(of([u64::MAX]).quantile_us(1), Some(first_of(BUCKETS - 1)));
    }

    #[test]
    fn a_reader_takes_differences() {
        let (earlier, later) = (of([1, 5, 5]), of([1, 5, 5, 5, 900]));
        let new = later.since(&earlier);
        assert_eq!((new.count(), new.quantile_us(1)), (2, Some(5)));
        assert_eq!(earlier.since(&later), earlier, "opened anew in between");
        let mut sum = earlier;
        sum.add(&new);
        assert_eq!(sum, later);
    }

    #[test]
    fn it_travels_without_its_empty_end_and_foreign_lengths_are_refused() {
        let histogram = of([0, 6, 6]);
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(text, "[1,0,0,0,0,0,2]");
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        let long = format!("[{}1]", "0,".repeat(BUCKETS));
        serde_json::from_str::<Histogram>(&long).unwrap_err();
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets, [(0..=0, 1), (6..=6, 2)]);
    }
}
