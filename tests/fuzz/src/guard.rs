//! What every run must keep to besides its target's own rules: memory and time.

use allocation_counter::measure;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Longest run of one input, in time of the processor: other processes may be busy too.
pub const RUN_TIME_MAX: Duration = Duration::from_secs(1);

/// Runs `work`, which may hold `limit_bytes` at a time.
///
/// # Panics
/// If it holds more.
pub fn bounded<T>(what: &str, limit_bytes: u64, work: impl FnOnce() -> T) -> T {
    let mut result = None;
    let used = measure(|| result = Some(work()));
    let most = used.bytes_max;
    assert!(
        most <= limit_bytes,
        "{what} holds {most} bytes, its input justifies {limit_bytes}"
    );
    result.expect("the closure was called")
}

/// Runs one input.
///
/// # Panics
/// If it takes more than [`RUN_TIME_MAX`].
pub fn timed(work: impl FnOnce()) {
    let begin = processor_time();
    work();
    let spent = processor_time().saturating_sub(begin);
    assert!(spent <= RUN_TIME_MAX, "one input takes {spent:?}");
}

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}
