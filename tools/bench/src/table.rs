//! The tables: rows with their spreads, and behind them everything that was measured.

use crate::kind::{Family, Kind, TAPDISK_PROMISE};
use crate::measured::Measured;
use crate::plan::Metric;
use crate::row::Row;

/// One row in one short line, for progress.
pub(crate) fn brief(row: &Row) -> String {
    let ratio = row
        .ratio
        .map(|r| format!(", {}x", short(r)))
        .unwrap_or_default();
    let peer = match (row.peer, &row.peer_name) {
        (Some(value), Some(name)) => format!(" against {} of {name}{ratio}", short(value)),
        _ => String::new(),
    };
    let met = if row.met { "met" } else { "NOT met" };
    format!(
        "{} {}: {}{peer}; {} {met}",
        row.id,
        row.work,
        short(row.ours),
        row.aim
    )
}

/// The table of rows.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<4} {:<14} {:>8} {:>14} {:>8} {:>14} {:>6} {:>11} {:>9} {:<4} {:>2} {:<4} {:<26} work\n",
        "id",
        "medium",
        "ours",
        "(quartiles)",
        "peer",
        "(quartiles)",
        "ratio",
        "(quartiles)",
        "aim",
        "met",
        "n",
        "load",
        "peer"
    );
    for row in rows {
        let spread = |[low, high]: [f64; 2]| format!("{}..{}", short(low), short(high));
        let note = row.note.as_ref().map(|note| format!(" [{note}]"));
        text += &format!(
            "{:<4} {:<14} {:>8} {:>14} {:>8} {:>14} {:>6} {:>11} {:>9} {:<4} {:>2} {:<4} {:<26} {}{}\n",
            row.id,
            row.medium,
            short(row.ours),
            spread(row.ours_spread),
            row.peer.map(short).unwrap_or_default(),
            row.peer_spread.map(spread).unwrap_or_default(),
            row.ratio.map(short).unwrap_or_default(),
            row.ratio_spread.map(spread).unwrap_or_default(),
            row.aim,
            if row.met { "yes" } else { "NO" },
            row.pairs,
            row.foreign_cores
                .map(|cores| format!("{cores:.2}"))
                .unwrap_or_default(),
            row.peer_name.as_deref().unwrap_or_default(),
            row.work,
            note.unwrap_or_default(),
        );
    }
    text
}

/// What each server promises, so that speed is not bought with it unseen.
pub(crate) fn promises() -> String {
    let mut text = "What an answered request is worth:\n".to_owned();
    for family in [
        Family::Ours,
        Family::QemuRaw,
        Family::QemuVpc,
        Family::QemuQcow2,
        Family::NbdkitFile,
        Family::NbdkitNull,
    ] {
        text += &format!("  {:<18} {}\n", family.name(), family.promise());
    }
    text += &format!("  {:<18} {TAPDISK_PROMISE}\n", "tapdisk 4.0.8");
    text
}

/// Everything that was measured at a point, whoever it is compared with.
pub(crate) fn context(measured: &Measured, disk: &str) -> String {
    let load = measured.foreign_cores().unwrap_or_default();
    let mut text = format!(
        "\n{}, {} (others used {:.2} cores, at most {:.2})\n",
        measured.medium.on(disk),
        measured.point.work,
        load.0,
        load.1
    );
    text += &format!(
        "  {:<24} {:>2} {:>8} {:>15} {:>7} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>7}\n",
        "server",
        "n",
        "IOPS",
        "(quartiles)",
        "MB/s",
        "CPU/100k",
        "CPU/GiB",
        "p50 us",
        "p99 us",
        "syscalls",
        "RSS MiB",
        "client"
    );
    for kind in measured.kinds() {
        text += &context_line(kind, measured);
    }
    for peer in &measured.left_out {
        text += &format!("  {peer}\n");
    }
    text
}

fn context_line(kind: Kind, measured: &Measured) -> String {
    let value = |metric| {
        let summary = measured.summary(kind, metric);
        summary.map(|s| short(s.median)).unwrap_or_default()
    };
    let iops = measured.summary(kind, Metric::Iops);
    let spread = iops.map(|s| format!("{}..{}", short(s.low), short(s.high)));
    let rss_bytes = measured.rss_bytes_max.get(&kind).copied().unwrap_or(0);
    format!(
        "  {:<24} {:>2} {:>8} {:>15} {:>7} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>7}\n",
        kind.name(),
        measured.values(kind, Metric::Iops).len(),
        value(Metric::Iops),
        spread.unwrap_or_default(),
        value(Metric::MegabytesPerSecond),
        value(Metric::CpuPer100k),
        value(Metric::CpuPerGib),
        value(Metric::P50Us),
        value(Metric::P99Us),
        value(Metric::SyscallsPerRequest),
        short(rss_bytes as f64 / f64::from(1 << 20)),
        measured.client_cores(kind).map(short).unwrap_or_default(),
    )
}

/// Three digits or so.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000.0 => format!("{:.1}k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Aim;
    use crate::row::Peer;

    #[test]
    fn numbers_have_three_digits_or_so() {
        for (value, text) in [
            (0.456, "0.46"),
            (12.34, "12.3"),
            (1234.0, "1234"),
            (45_678.0, "45.7k"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn a_line_says_who_was_better_and_whether_that_was_enough() {
        let peer = Peer {
            name: "qemu-nbd raw native".to_owned(),
            values: vec![2.0, 2.0],
            recorded: false,
        };
        let aim = Aim::MostTimes(0.45);
        let row = Row::against("P1", "reads", "tmpfs", &[1.0, 1.0], &peer, aim).unwrap();
        let line = brief(&row);
        assert_eq!(
            line,
            "P1 reads: 1.00 against 2.00 of qemu-nbd raw native, 0.50x; <= 0.45x NOT met"
        );
        assert!(table(&[row]).contains(" NO "));
    }
}
