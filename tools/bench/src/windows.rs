//! What a guest saw in a stretch of time.

use crate::guest::Span;
use crate::stats::part_of;
use std::time::{Duration, Instant};

/// A stretch of time that is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Window {
    /// From then on until now.
    pub(crate) fn since(from: Instant) -> Self {
        Self {
            from,
            to: Instant::now(),
        }
    }

    pub(crate) fn length(&self) -> Duration {
        self.to.duration_since(self.from)
    }

    pub(crate) fn ms(&self) -> f64 {
        self.length().as_secs_f64() * 1e3
    }

    /// Requests answered per second.
    pub(crate) fn iops(&self, spans: &[Span]) -> f64 {
        self.answered(spans).count() as f64 / self.length().as_secs_f64()
    }

    /// Milliseconds within which such a part of the requests was answered. Where none was answered,
    /// all of them waited: then it is the longest wait. `None` without any request.
    pub(crate) fn part_ms(&self, spans: &[Span], part: f64) -> Option<f64> {
        let waits: Vec<f64> = self.answered(spans).map(Span::ms).collect();
        part_of(&waits, part).or_else(|| self.longest_ms(spans))
    }

    /// The longest wait of a request that was on its way at some moment of it, in milliseconds;
    /// `None` without any.
    pub(crate) fn longest_ms(&self, spans: &[Span]) -> Option<f64> {
        let inside = spans
            .iter()
            .filter(|s| s.sent <= self.to && s.answered >= self.from);
        inside.map(Span::ms).reduce(f64::max)
    }

    fn answered<'a>(&self, spans: &'a [Span]) -> impl Iterator<Item = &'a Span> {
        let Self { from, to } = *self;
        spans
            .iter()
            .filter(move |s| s.answered >= from && s.answered <= to)
    }
}

impl From<(Instant, Instant)> for Window {
    fn from((from, to): (Instant, Instant)) -> Self {
        Self { from, to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests by the milliseconds of their sending and their answer.
    fn spans(start: Instant, all: &[(u64, u64)]) -> Vec<Span> {
        let at = |ms| start + Duration::from_millis(ms);
        let span = |(sent, answered): &(u64, u64)| Span {
            sent: at(*sent),
            answered: at(*answered),
        };
        all.iter().map(span).collect()
    }

    fn window(start: Instant, from: u64, to: u64) -> Window {
        let at = |ms| start + Duration::from_millis(ms);
        (at(from), at(to)).into()
    }

    #[test]
    fn only_requests_on_their_way_in_a_window_are_waits_of_it() {
        let start = Instant::now();
        let spans = spans(start, &[(0, 100), (40, 47), (49, 52), (60, 300)]);
        for (from, to, longest) in [
            (45, 50, Some(100.0)),
            (101, 102, Some(240.0)),
            (400, 401, None),
        ] {
            assert_eq!(window(start, from, to).longest_ms(&spans), longest);
        }
    }

    #[test]
    fn requests_count_where_they_are_answered() {
        let start = Instant::now();
        let spans = spans(start, &[(0, 10), (5, 20), (15, 30), (25, 120)]);
        let window = window(start, 10, 110);
        assert!((window.iops(&spans) - 30.0).abs() < 1e-9);
        assert_eq!(window.part_ms(&spans, 1.0), Some(15.0));
    }

    #[test]
    fn a_window_in_which_nothing_is_answered_is_one_long_wait() {
        let start = Instant::now();
        let spans = spans(start, &[(0, 10), (5, 205)]);
        let window = window(start, 50, 150);
        assert_eq!(window.part_ms(&spans, 0.99), Some(200.0));
    }
}
