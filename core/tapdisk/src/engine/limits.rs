//! How much a disk may do in a second: two token buckets, filled by the time that the loop tells.
//!
//! A bucket holds at most its burst and is filled at its rate. A request starts while there is at
//! least one token for it in each bucket; bytes may then go below nothing, so that a request of any
//! size starts some time and the rate still holds in the long run. A request that finds too little
//! waits, and everything behind it with it, in order. Flushes take no token and never wait: what
//! they promise is about requests that were answered, none of which waits here.

use super::Engine;
use super::request::{Error, ErrorKind, Request};
use datapath::protocol::{Limit, Limits};

/// Tokens are counted in millionths, so that a microsecond at one per second is one of them.
const TOKEN: i64 = 1_000_000;

#[derive(Debug)]
struct Bucket {
    per_second: i64,
    full: i64,
    level: i64,
}

impl Bucket {
    fn of(limit: Limit) -> Self {
        let full = i64::try_from(limit.burst).unwrap_or(i64::MAX);
        let full = full.saturating_mul(TOKEN);
        Self {
            per_second: i64::try_from(limit.per_second).unwrap_or(i64::MAX),
            full,
            level: full,
        }
    }

    fn fill(&mut self, passed_us: i64) {
        let more = self.per_second.saturating_mul(passed_us);
        self.level = self.level.saturating_add(more).min(self.full);
    }

    fn missing_us(&self) -> i64 {
        let missing = TOKEN.saturating_sub(self.level).max(0);
        let whole = missing / self.per_second.max(1);
        whole.saturating_add(i64::from(missing % self.per_second.max(1) > 0))
    }
}

/// The limits of one disk, as they stand.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    limits: Limits,
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
    filled_us: u64,
    /// The request at the head of those held back waits for tokens.
    waiting: bool,
}

impl Throttle {
    pub(super) fn is_on(&self) -> bool {
        self.requests.is_some() || self.bytes.is_some()
    }

    fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.requests.iter_mut().chain(&mut self.bytes)
    }

    fn fill(&mut self, now_us: u64) {
        let passed = now_us.saturating_sub(self.filled_us);
        self.filled_us = now_us.max(self.filled_us);
        let passed = i64::try_from(passed).unwrap_or(i64::MAX);
        self.buckets().for_each(|bucket| bucket.fill(passed));
    }

    /// Takes the tokens of a request if it may start now.
    fn take(&mut self, now_us: u64, bytes: u64) -> bool {
        self.fill(now_us);
        let short = self.buckets().any(|bucket| bucket.level < TOKEN);
        self.waiting = short;
        if short {
            return false;
        }
        let cost = |count: u64| {
            i64::try_from(count)
                .unwrap_or(i64::MAX)
                .saturating_mul(TOKEN)
        };
        if let Some(bucket) = &mut self.requests {
            bucket.level = bucket.level.saturating_sub(TOKEN);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.level = bucket.level.saturating_sub(cost(bytes));
        }
        true
    }

    /// Nobody waits for tokens, until somebody finds too few again.
    pub(super) fn stop_waiting(&mut self) {
        self.waiting = false;
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// When the next request may start, if one waits for that.
    pub(super) fn wake_at_us(&self) -> Option<u64> {
        let buckets = self.requests.iter().chain(&self.bytes);
        let missing_us = buckets.map(Bucket::missing_us).max();
        let missing_us = missing_us.filter(|_| self.waiting)?;
        let missing_us = u64::try_from(missing_us).unwrap_or(0);
        Some(self.filled_us.saturating_add(missing_us))
    }
}

/// Bytes that a request moves between the client and the files.
fn bytes_moved(request: &Request) -> u64 {
    match request {
        Request::Read { len_bytes, .. } => u64::from(*len_bytes),
        Request::Write { data, .. } => data.len() as u64,
        Request::WriteShared { data, .. } => data.len() as u64,
        Request::WriteZeroes {
            len_bytes,
            may_trim: false,
            ..
        } => *len_bytes,
        _ => 0,
    }
}

impl Engine {
    /// The limits that were set last.
    pub fn limits(&self) -> Limits {
        self.throttle.limits
    }

    /// Sets all limits anew. A rate that was there before keeps what it has saved up or owes, a new
    /// one begins with its burst.
    ///
    /// # Errors
    /// `Invalid` for a rate or burst of zero or beyond [`Limit::MAX`]; nothing is changed then.
    pub fn set_limits(&mut self, limits: Limits) -> Result<(), Error> {
        for limit in [limits.requests, limits.bytes].into_iter().flatten() {
            for value in [limit.per_second, limit.burst] {
                if value == 0 || value > Limit::MAX {
                    let text = format!("a limit of {value} is not between 1 and {}", Limit::MAX);
                    return Err(Error::new(ErrorKind::Invalid, text));
                }
            }
        }
        self.throttle.fill(self.stats.now_us);
        let renew = |old: Option<Bucket>, limit: Option<Limit>| {
            let new = Bucket::of(limit?);
            let level = old.map_or(new.full, |old| old.level.min(new.full));
            Some(Bucket { level, ..new })
        };
        let throttle = &mut self.throttle;
        throttle.requests = renew(throttle.requests.take(), limits.requests);
        throttle.bytes = renew(throttle.bytes.take(), limits.bytes);
        throttle.limits = limits;
        throttle.waiting = false;
        self.release_held();
        Ok(())
    }

    /// Whether a request may start as far as limits go; takes its tokens if so.
    pub(super) fn take_tokens(&mut self, request: &Request) -> bool {
        matches!(request, Request::Flush)
            || !self.throttle.is_on()
            || self.throttle.take(self.stats.now_us, bytes_moved(request))
    }

    /// The disk closes: whoever waits for tokens alone waits no longer.
    pub(super) fn lift_limits(&mut self) {
        self.throttle = Throttle::default();
        self.release_held();
    }
}
