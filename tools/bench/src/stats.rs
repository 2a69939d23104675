//! Medians and spreads of a handful of measurements. No bootstrap, no model: few numbers, shown.

/// What several measurements of one thing come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// First quartile.
    pub(crate) low: f64,
    /// The middle one.
    pub(crate) median: f64,
    /// Third quartile.
    pub(crate) high: f64,
}

impl Summary {
    /// Summarises what was measured; `None` when nothing was.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self {
            low: quantile(&sorted, 0.25)?,
            median: quantile(&sorted, 0.5)?,
            high: quantile(&sorted, 0.75)?,
        })
    }

    /// Summarises the quotients of pairs measured one right after the other, so that what slows
    /// the machine for a while slows both sides of a pair.
    pub(crate) fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }
}

/// The value below which a part of all values lies: 0.5 is the median, 1 the largest.
pub(crate) fn part_of(values: &[f64], part: f64) -> Option<f64> {
    quantile(&sorted(values), part)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value below which `part` of `sorted` lies, between two neighbours by straight line.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = part * sorted.len().checked_sub(1)? as f64;
    let below = sorted.get(place.floor() as usize)?;
    let above = sorted.get(place.ceil() as usize)?;
    Some(below + (above - below) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(values: &[f64]) -> Option<(f64, f64, f64)> {
        Summary::of(values).map(|s| (s.low, s.median, s.high))
    }

    #[test]
    fn summaries_are_quartiles_in_any_order() {
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[f64::NAN]), None);
        assert_eq!(summary(&[7.0]), Some((7.0, 7.0, 7.0)));
        assert_eq!(summary(&[4.0, 2.0]), Some((2.5, 3.0, 3.5)));
        assert_eq!(
            summary(&[5.0, 1.0, 4.0, 2.0, 3.0]),
            Some((2.0, 3.0, 4.0)),
            "unsorted input"
        );
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // The machine is twice as slow for the second pair: the ratio does not show it.
        let ratio = Summary::of_ratios(&[10.0, 20.0, 10.0], &[20.0, 40.0, 20.0]).unwrap();
        assert_eq!((ratio.low, ratio.median, ratio.high), (0.5, 0.5, 0.5));
        assert_eq!(Summary::of_ratios(&[1.0], &[0.0]), None);
    }
}
