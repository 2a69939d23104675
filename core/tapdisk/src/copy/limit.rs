//! How fast a copy goes: a bound on bytes per second (tokens that come with time, and debts that are
//! paid in it), and rests between pieces while guests use the disk.

/// Most seconds whose tokens are saved up.
const SAVED_S: u64 = 1;

/// Microseconds in a second.
const SECOND_US: u64 = 1_000_000;

/// Tokens are bytes.
#[derive(Debug)]
pub(super) struct Limit {
    bytes_per_s: Option<u64>,
    /// Below zero after a piece larger than what was there.
    tokens: i64,
    /// Until when tokens were given.
    last_us: Option<u64>,
}

impl Limit {
    pub(super) fn new(bytes_per_s: Option<u64>) -> Self {
        Self {
            bytes_per_s,
            tokens: 0,
            last_us: None,
        }
    }

    /// Time passed.
    pub(super) fn tick(&mut self, now_us: u64) {
        let Some(rate) = self.bytes_per_s else { return };
        let last_us = *self.last_us.get_or_insert(now_us);
        let passed_us = now_us.saturating_sub(last_us);
        let earned = u128::from(passed_us) * u128::from(rate) / u128::from(SECOND_US);
        let earned = i64::try_from(earned).unwrap_or(i64::MAX);
        if earned == 0 {
            // Too short a time for one byte: it counts the next time.
            return;
        }
        self.last_us = Some(now_us);
        let most = i64::try_from(rate.saturating_mul(SAVED_S)).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_add(earned).min(most);
    }

    /// Whether something may be copied now. It may take more than is there; the next then waits
    /// longer.
    pub(super) fn allows(&self) -> bool {
        self.bytes_per_s.is_none() || self.tokens > 0
    }

    pub(super) fn spend(&mut self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_sub(bytes);
    }

    /// When it allows the next piece, if not now.
    pub(super) fn wake_at_us(&self) -> Option<u64> {
        let rate = self.bytes_per_s.filter(|_| !self.allows())?;
        let missing = self.tokens.unsigned_abs().saturating_add(1);
        let wait_us = u128::from(missing) * u128::from(SECOND_US) / u128::from(rate.max(1));
        let wait_us = u64::try_from(wait_us).unwrap_or(u64::MAX).saturating_add(1);
        Some(self.last_us.unwrap_or(0).saturating_add(wait_us))
    }
}

/// How much longer than a piece took the copy rests after it while guests are busy: they have six
/// parts of seven of what both use, be it the disk or this process.
const REST_FACTOR: u64 = 6;

/// Longest rest in microseconds, so that storage that hangs for a moment does not stop the copy.
const REST_US_MAX: u64 = 20_000;

/// Rests between pieces.
#[derive(Debug, Default)]
pub(super) struct Pace {
    began_us: Option<u64>,
    until_us: u64,
}

impl Pace {
    /// A piece begins.
    pub(super) fn begin(&mut self, now_us: u64) {
        self.began_us.get_or_insert(now_us);
    }

    /// Every piece that had begun has ended.
    pub(super) fn end(&mut self, now_us: u64) {
        if let Some(began_us) = self.began_us.take() {
            let took_us = now_us.saturating_sub(began_us);
            let rest_us = took_us.saturating_mul(REST_FACTOR).min(REST_US_MAX);
            self.until_us = now_us.saturating_add(rest_us);
        }
    }

    /// Whether what began was not said to have ended.
    pub(super) fn is_open(&self) -> bool {
        self.began_us.is_some()
    }

    /// When the next piece may begin, unless that is over.
    pub(super) fn rests_until_us(&self, now_us: u64) -> Option<u64> {
        (self.until_us > now_us).then_some(self.until_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_are_as_long_as_pieces_took_and_never_long() {
        let mut pace = Pace::default();
        pace.end(5);
        assert_eq!(pace.rests_until_us(5), None, "nothing had begun");
        pace.begin(100);
        pace.begin(150);
        pace.end(200);
        assert_eq!(pace.rests_until_us(200), Some(800));
        assert_eq!(pace.rests_until_us(800), None);
        pace.begin(1_000);
        pace.end(9_000_000);
        assert_eq!(pace.rests_until_us(9_000_000), Some(9_020_000));
    }

    #[test]
    fn tokens_come_with_time_and_not_without_end() {
        let mut limit = Limit::new(Some(1000));
        limit.tick(7);
        assert!(!limit.allows(), "nothing is given at the start");
        limit.tick(100_007);
        assert_eq!(limit.tokens, 100);
        limit.tick(3600 * SECOND_US);
        assert_eq!(limit.tokens, 1000, "an hour of silence is no hour of noise");
        limit.spend(400);
        assert!(limit.allows());
        limit.spend(2600);
        let wake = limit.wake_at_us().expect("two seconds' worth is owed");
        assert_eq!(wake, 3602 * SECOND_US + 1001);
        limit.tick(wake - 2000);
        assert!(!limit.allows());
        limit.tick(wake);
        assert!(limit.allows());
        assert_eq!(limit.wake_at_us(), None);
    }

    #[test]
    fn without_a_limit_everything_is_allowed() {
        let mut limit = Limit::new(None);
        limit.spend(u64::MAX);
        assert!(limit.allows());
    }
}
