//! What is counted of a disk. Plain numbers that its own thread adds to: no lock, no allocation, and
//! no clock; the time is what [`Engine::set_now`] said last, which is once per turn of the loop.

use super::Engine;
use super::state::Kind;
use datapath::histogram::Histogram;
use datapath::protocol::{DiskLatencies, DiskStats};

/// Latencies by what was asked.
#[derive(Debug, Default)]
struct Latencies {
    reads: Histogram,
    writes: Histogram,
    discards: Histogram,
    flushes: Histogram,
}

/// The counts of one disk.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) counts: DiskStats,
    latencies: Box<Latencies>,
    /// Microseconds since whatever the loop counts from.
    pub(super) now_us: u64,
}

impl Stats {
    /// Time goes on; until now `depth` requests were in flight.
    fn advance(&mut self, now_us: u64, depth: u32) {
        let passed = now_us.saturating_sub(self.now_us);
        self.now_us = self.now_us.max(now_us);
        if depth > 0 {
            let counts = &mut self.counts;
            counts.busy_us = counts.busy_us.saturating_add(passed);
            let weighted = passed.saturating_mul(u64::from(depth));
            counts.depth_us = counts.depth_us.saturating_add(weighted);
        }
    }

    /// A request came in, with which `depth` are in flight.
    pub(super) fn submitted(&mut self, depth: usize) {
        let depth = u32::try_from(depth).unwrap_or(u32::MAX);
        self.counts.in_flight_max = self.counts.in_flight_max.max(depth);
    }

    /// A request worked.
    pub(super) fn worked(&mut self, kind: &Kind, since_us: u64) {
        let took = self.now_us.saturating_sub(since_us);
        let counts = &mut self.counts;
        match kind {
            Kind::Read { span, .. } => {
                counts.reads += 1;
                counts.read_bytes = counts.read_bytes.saturating_add(span.len_bytes());
                self.latencies.reads.record(took);
            }
            Kind::Write { span, .. } => {
                counts.writes += 1;
                counts.write_bytes = counts.write_bytes.saturating_add(span.len_bytes());
                self.latencies.writes.record(took);
            }
            Kind::Zero { span, .. } => {
                counts.writes += 1;
                counts.discards += 1;
                counts.discard_bytes = counts.discard_bytes.saturating_add(span.len_bytes());
                self.latencies.discards.record(took);
            }
            Kind::Flush => {
                counts.flushes += 1;
                self.latencies.flushes.record(took);
            }
            Kind::Status { .. } | Kind::Live => {}
        }
    }
}

impl Engine {
    /// Tells the engine the time, in microseconds since any fixed moment. To be called once in each
    /// turn of the loop, before completions are handed in, and at [`Engine::wake_at_us`].
    pub fn set_now(&mut self, now_us: u64) {
        let depth = u32::try_from(self.requests_in_flight()).unwrap_or(u32::MAX);
        self.stats.advance(now_us, depth);
        if self.wake_at_us().is_some_and(|at| at <= now_us) {
            self.wake();
        }
    }

    /// Requests that are not answered.
    pub(super) fn requests_in_flight(&self) -> usize {
        self.requests.len().saturating_add(self.held.len())
    }

    /// Counts since the disk was opened.
    pub fn stats(&self) -> DiskStats {
        let u32_of = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        DiskStats {
            in_flight: u32_of(self.requests_in_flight()),
            held: u32_of(self.held.len().saturating_add(self.pause.kept())),
            ..self.stats.counts
        }
    }

    /// The same with latencies.
    pub fn latencies(&self) -> DiskLatencies {
        let Latencies {
            reads,
            writes,
            discards,
            flushes,
        } = &*self.stats.latencies;
        DiskLatencies {
            stats: self.stats(),
            taken_us: self.stats.now_us,
            reads: reads.clone(),
            writes: writes.clone(),
            discards: discards.clone(),
            flushes: flushes.clone(),
        }
    }
}
