//! Rates hold in the long run, bursts at once, and order always.

use super::rig::{BLOCK, Rig, SECTOR, ram_with_dynamic};
use crate::engine::{ErrorKind, LiveOp, Request, Ticket};
use block::{Buffer, RamDisk};
use datapath::protocol::{Limit, Limits};

const SECOND_US: u64 = 1_000_000;

fn limits(requests: Option<(u64, u64)>, bytes: Option<(u64, u64)>) -> Limits {
    let limit = |(per_second, burst)| Limit { per_second, burst };
    Limits {
        requests: requests.map(limit),
        bytes: bytes.map(limit),
    }
}

fn rig(limits: Limits) -> Rig<RamDisk> {
    let (ram, files) = ram_with_dynamic(4 * BLOCK);
    let mut rig = Rig::open(ram, &files);
    rig.engine.set_limits(limits).expect("possible limits");
    rig
}

fn read(len_bytes: u32) -> Request {
    Request::Read {
        offset: 0,
        len_bytes,
    }
}

/// Lets time pass, as the loop does: only to the moments that the engine asks for. Returns when each
/// request was answered, in microseconds, in the order of the answers.
fn answers(rig: &mut Rig<RamDisk>) -> Vec<(Ticket, u64)> {
    let (mut now_us, mut answers) = (0, Vec::new());
    loop {
        while rig.step() {}
        answers.extend(rig.finished.drain(..).map(|f| (f.ticket, now_us)));
        match rig.engine.wake_at_us() {
            Some(at) => {
                assert!(at > now_us, "it asks for a moment that is over");
                now_us = at;
                rig.engine.set_now(now_us);
            }
            None => return answers,
        }
    }
}

#[test]
fn a_burst_is_served_at_once_and_the_rest_at_the_rate_in_order() {
    for (limits, len_bytes) in [
        (limits(Some((100, 10)), None), 512),
        (limits(None, Some((409_600, 40_960))), 4096),
        (limits(Some((100, 10)), Some((1 << 30, 1 << 30))), 4096),
    ] {
        let mut rig = rig(limits);
        let tickets: Vec<Ticket> = (0..210).map(|_| rig.submit(read(len_bytes))).collect();
        assert_eq!(rig.engine.stats().held, 200);
        let answers = answers(&mut rig);
        assert!(answers.iter().map(|(ticket, _)| *ticket).eq(tickets));
        for (rank, (_, at_us)) in answers.iter().enumerate() {
            // A request of bytes starts while there is one byte left for it.
            let may = 11 + at_us * 100 / SECOND_US;
            assert!((rank as u64) < may, "{rank} of {may} after {at_us} us");
        }
        let last = answers.last().map_or(0, |(_, at_us)| *at_us);
        assert!(
            last.abs_diff(2 * SECOND_US) < SECOND_US / 50,
            "{limits:?}: {last} us"
        );
    }
}

#[test]
fn a_request_larger_than_the_burst_starts_and_is_paid_for_afterwards() {
    let mut rig = rig(limits(None, Some((1 << 20, 4096))));
    rig.submit(read(2 << 20));
    rig.submit(read(512));
    let answers = answers(&mut rig);
    assert_eq!(answers[0].1, 0);
    assert!(
        answers[1].1.abs_diff(2 * SECOND_US) < SECOND_US / 50,
        "{answers:?}"
    );
}

#[test]
fn a_flush_never_waits_and_costs_nothing() {
    let mut rig = rig(limits(Some((1, 1)), None));
    let write = |rig: &mut Rig<RamDisk>, byte| {
        let data = Buffer::copy_of(&[byte; 512]);
        rig.submit(Request::Write {
            offset: 0,
            data,
            fua: false,
        })
    };
    let first = write(&mut rig, 1);
    let (held, flush) = (write(&mut rig, 2), rig.submit(Request::Flush));
    while rig.step() {}
    rig.take(first).expect("answered").expect("it works");
    rig.take(flush).expect("answered").expect("it works");
    assert!(rig.take(held).is_none());
    rig.engine.set_now(SECOND_US - 1);
    assert!(
        !rig.step() && rig.finished.is_empty(),
        "a microsecond early"
    );
    rig.engine.set_now(SECOND_US);
    rig.wait(held).expect("it works");
    rig.engine.set_limits(Limits::default()).expect("none");
    assert_eq!(rig.read(0, SECTOR).expect("read"), [2; 512]);
}

#[test]
fn limits_change_while_requests_wait_and_impossible_ones_change_nothing() {
    let narrow = limits(Some((1, 1)), None);
    let mut rig = rig(narrow);
    for _ in 0..5 {
        rig.submit(read(512));
    }
    for wrong in [(0, 1), (1, 0), (Limit::MAX + 1, 1), (1, u64::MAX)] {
        for limits in [limits(Some(wrong), None), limits(None, Some(wrong))] {
            let error = rig.engine.set_limits(limits).expect_err("refused");
            assert_eq!(error.kind, ErrorKind::Invalid);
        }
    }
    assert_eq!(rig.engine.limits(), narrow);
    assert_eq!(rig.engine.stats().held, 4);
    // No burst for the asking: setting a limit again does not fill it.
    rig.engine.set_limits(narrow).expect("the same");
    assert_eq!(rig.engine.stats().held, 4);
    rig.engine.set_limits(Limits::default()).expect("none");
    while rig.step() {}
    assert_eq!((rig.finished.len(), rig.engine.stats().held), (5, 0));
    assert_eq!(rig.engine.wake_at_us(), None);
}

#[test]
fn a_freeze_does_not_wait_for_tokens_and_a_close_answers_what_waits() {
    let mut rig = rig(limits(Some((1, 1)), None));
    let held: Vec<Ticket> = (0..3).map(|_| rig.submit(read(512))).skip(1).collect();
    rig.run_live(LiveOp::Freeze).expect("it freezes");
    assert_eq!(rig.engine.wake_at_us(), None, "nothing can start");
    rig.engine.thaw();
    assert_eq!(rig.engine.stats().held, 2);
    assert_eq!(rig.engine.wake_at_us(), Some(SECOND_US));
    rig.run_live(LiveOp::Close).expect("it closes");
    for ticket in held {
        rig.take(ticket).expect("answered").expect("with data");
    }
}

#[test]
fn latencies_and_depth_are_of_the_time_that_was_told() {
    let mut rig = rig(limits(Some((10, 1)), None));
    rig.engine.set_now(1000);
    for _ in 0..3 {
        rig.submit(read(4096));
    }
    let mut now_us = 1000;
    while let Some(at) = rig.engine.wake_at_us() {
        while rig.step() {}
        now_us = at;
        rig.engine.set_now(now_us);
    }
    while rig.step() {}
    rig.engine.set_now(now_us + 500_000);
    let found = rig.engine.latencies();
    assert_eq!(found.reads.count(), 3);
    // At once, after a tenth and after two tenths of a second.
    assert_eq!(found.reads.quantile_us(1), Some(0));
    let slowest = found.reads.quantile_us(1_000_000).expect("there are some");
    assert!((200_000..250_000).contains(&slowest), "{slowest}");
    assert_eq!(
        (found.stats.busy_us, found.stats.depth_us),
        (200_000, 300_000)
    );
    assert_eq!((found.stats.in_flight_max, found.stats.in_flight), (2, 0));
    assert_eq!(found.taken_us, now_us + 500_000);
}
