//! Turns readings into rows: gauges pass, counters become rates.

use crate::{Key, Kind, Reading, Row, Step};
use std::collections::BTreeMap;

/// Most data sources that one host keeps; readings beyond are dropped, and counted.
const SOURCES_MAX: usize = 100_000;

/// Remembers the last value of each counter.
#[derive(Debug, Default)]
pub struct Derivation {
    last: BTreeMap<Key, (f64, f64)>,
}

impl Derivation {
    /// Makes the step of one moment. A counter's first reading gives no row, as there is no rate
    /// yet; a counter that was not read this time is forgotten. Values that are not finite are
    /// dropped, and of two readings with one key the first counts.
    pub fn step(&mut self, time_s: f64, mut readings: Vec<Reading>) -> Step {
        readings.truncate(SOURCES_MAX);
        let mut seen = BTreeMap::new();
        let mut rows = BTreeMap::new();
        for Reading { key, kind, value } in readings {
            if !value.is_finite() || rows.contains_key(&key) || seen.contains_key(&key) {
                continue;
            }
            match kind {
                Kind::Gauge => {
                    rows.insert(key, value);
                }
                Kind::Derive => {
                    if let Some(rate) = self.rate(&key, time_s, value) {
                        rows.insert(key.clone(), rate);
                    }
                    seen.insert(key, (time_s, value));
                }
            }
        }
        self.last = seen;
        let rows = rows
            .into_iter()
            .map(|(key, value)| Row { key, value })
            .collect();
        Step { time_s, rows }
    }

    fn rate(&self, key: &Key, time_s: f64, value: f64) -> Option<f64> {
        let (then_s, before) = *self.last.get(key)?;
        let elapsed_s = time_s - then_s;
        if elapsed_s <= 0.0 {
            return None;
        }
        let growth = if value < before {
            value
        } else {
            value - before
        };
        Some(growth / elapsed_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(name: &str, kind: Kind, value: f64) -> Reading {
        let key = Key {
            class: "VM",
            uuid: "u".to_owned(),
            name: name.to_owned(),
        };
        Reading { key, kind, value }
    }

    /// Feeds counter values five seconds apart; `None` is a step without a reading.
    fn rates(values: &[Option<f64>]) -> Vec<Option<f64>> {
        let mut derivation = Derivation::default();
        let steps = values.iter().enumerate().map(|(index, value)| {
            let readings = value
                .map(|value| reading("c", Kind::Derive, value))
                .into_iter()
                .collect();
            derivation
                .step(index as f64 * 5.0, readings)
                .rows
                .first()
                .map(|row| row.value)
        });
        steps.collect()
    }

    #[test]
    fn a_counter_becomes_growth_per_second() {
        assert_eq!(
            rates(&[Some(100.0), Some(200.0), Some(200.0)]),
            [None, Some(20.0), Some(0.0)]
        );
    }

    #[test]
    fn a_counter_that_fell_was_reset_and_starts_at_zero() {
        assert_eq!(rates(&[Some(1000.0), Some(50.0)]), [None, Some(10.0)]);
    }

    #[test]
    fn a_counter_that_was_away_starts_anew() {
        assert_eq!(
            rates(&[Some(10.0), None, Some(500.0), Some(505.0)]),
            [None, None, None, Some(1.0)]
        );
    }

    #[test]
    fn a_clock_that_goes_back_gives_no_rate() {
        let mut derivation = Derivation::default();
        derivation.step(10.0, vec![reading("c", Kind::Derive, 1.0)]);
        assert!(
            derivation
                .step(10.0, vec![reading("c", Kind::Derive, 2.0)])
                .rows
                .is_empty()
        );
        assert!(
            derivation
                .step(5.0, vec![reading("c", Kind::Derive, 3.0)])
                .rows
                .is_empty()
        );
    }

    #[test]
    fn values_that_are_not_numbers_and_doubles_are_dropped() {
        let step = Derivation::default().step(
            0.0,
            vec![
                reading("a", Kind::Gauge, f64::NAN),
                reading("b", Kind::Gauge, 1.0),
                reading("b", Kind::Gauge, 2.0),
            ],
        );
        assert_eq!(
            step.rows.iter().map(|row| row.value).collect::<Vec<_>>(),
            [1.0]
        );
    }
}
