//! An alert: raises a message when a VM's disks are written faster than a limit for a while, and
//! another when they no longer are.
//!
//! ```text
//!            rate > limit for period_s: ALARM
//!   quiet --------------------------------------> raised
//!     ^                                              |
//!     +----------------------------------------------+
//!            rate < clear for period_s: ALARM_CLEARED
//! ```
//! What it knows of a VM lies in the host's key-value state, one key per VM that is not at rest.

#![deny(unsafe_code)]

use std::collections::BTreeMap;
use xylem_sdk::monitor::*;
use xylem_sdk::{Error, Result, host, messages};

struct WriteRateAlert;

/// Where one VM stands.
#[derive(Clone, Copy, PartialEq)]
struct Standing {
    raised: bool,
    /// Since when the rate has been on the other side, in seconds since the Unix epoch.
    crossing_since_s: Option<f64>,
}

const AT_REST: Standing = Standing {
    raised: false,
    crossing_since_s: None,
};

impl Standing {
    fn load(vm: &str) -> Result<Self> {
        let Some(text) = host::state_get(vm)? else {
            return Ok(AT_REST);
        };
        let (state, since) = text.split_once(' ').unwrap_or((&text, ""));
        Ok(Self {
            raised: state == "raised",
            crossing_since_s: since.parse().ok(),
        })
    }

    fn store(self, vm: &str) -> Result<()> {
        if self == AT_REST {
            return host::state_delete(vm);
        }
        let state = if self.raised { "raised" } else { "quiet" };
        let since = self
            .crossing_since_s
            .map_or_else(String::new, |since| since.to_string());
        host::state_put(vm, &format!("{state} {since}"))
    }

    /// Returns the standing after a step, and whether the alarm changed.
    fn step(self, rate: f64, limits: &Limits, time_s: f64) -> (Self, bool) {
        let crosses = if self.raised {
            rate < limits.clear
        } else {
            rate > limits.raise
        };
        if !crosses {
            return (
                Self {
                    crossing_since_s: None,
                    ..self
                },
                false,
            );
        }
        let since = self.crossing_since_s.unwrap_or(time_s);
        if time_s - since < limits.period_s {
            return (
                Self {
                    crossing_since_s: Some(since),
                    ..self
                },
                false,
            );
        }
        (
            Self {
                raised: !self.raised,
                crossing_since_s: None,
            },
            true,
        )
    }
}

/// The settings as numbers.
struct Limits {
    raise: f64,
    clear: f64,
    period_s: f64,
    priority: u8,
}

impl Limits {
    fn read() -> Result<Self> {
        let raise = number("limit_bytes_per_s")?;
        Ok(Self {
            raise,
            clear: raise * number("clear_fraction")?,
            period_s: number("period_s")?,
            priority: number("priority")? as u8,
        })
    }
}

fn number(name: &str) -> Result<f64> {
    let text = host::setting(name).unwrap_or_default();
    text.parse()
        .map_err(|_| Error::invalid(format!("setting {name} = {text:?} is no number")))
}

fn is_write_rate(name: &str) -> bool {
    name.strip_prefix("vbd_")
        .and_then(|rest| rest.strip_suffix("_write"))
        .is_some_and(|device| {
            !device.is_empty() && device.chars().all(|c| c.is_ascii_alphanumeric())
        })
}

/// Sums the write rates of each VM's disks.
fn rates(rows: &[MetricRow]) -> BTreeMap<&str, f64> {
    let mut rates = BTreeMap::new();
    for row in rows
        .iter()
        .filter(|row| row.class == "VM" && is_write_rate(&row.name))
    {
        *rates.entry(row.uuid.as_str()).or_insert(0.0) += row.value;
    }
    rates
}

impl Monitor for WriteRateAlert {
    fn query() -> PluginInfo {
        plugin_info! {
            driver: "write-rate-alert",
            name: "Write rate alert",
            description: "Raises ALARM when a VM writes faster than a limit for a while",
            vendor: "Xylem",
            copyright: "MIT OR Apache-2.0",
            configuration: {
                "limit_bytes_per_s": "rate above which the alarm is raised",
                "clear_fraction": "part of the limit below which it is cleared",
                "period_s": "seconds that the rate must stay there",
                "priority": "of the message, 1 to 5",
            },
        }
    }

    fn handle(event: Event) -> Result<()> {
        let Event::Metrics(step) = event else {
            return Ok(());
        };
        let limits = Limits::read()?;
        for (vm, rate) in rates(&step.rows) {
            let before = Standing::load(vm)?;
            let (after, changed) = before.step(rate, &limits, step.time_s);
            if changed {
                let name = if after.raised {
                    "ALARM"
                } else {
                    "ALARM_CLEARED"
                };
                messages::create(&Message {
                    name: name.to_owned(),
                    priority: limits.priority,
                    class: "VM".to_owned(),
                    uuid: vm.to_owned(),
                    body: format!("value: {rate:.0}\nconfig: write_rate > {:.0}", limits.raise),
                })?;
            }
            if after != before {
                after.store(vm)?;
            }
        }
        Ok(())
    }
}

export_plugin!(WriteRateAlert);

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        raise: 100.0,
        clear: 50.0,
        period_s: 10.0,
        priority: 3,
    };

    #[test]
    fn an_alarm_needs_the_whole_period_and_clears_only_below_the_lower_limit() {
        let steps = [
            // time, rate, raised afterwards, changed
            (0.0, 200.0, false, false),
            (5.0, 200.0, false, false),
            (6.0, 90.0, false, false), // a dip starts the period again
            (7.0, 200.0, false, false),
            (17.0, 200.0, true, true),
            (22.0, 200.0, true, false),
            (27.0, 70.0, true, false), // between the limits nothing moves
            (60.0, 70.0, true, false),
            (61.0, 10.0, true, false),
            (71.0, 10.0, false, true),
        ];
        let mut standing = AT_REST;
        for (time_s, rate, raised, changed) in steps {
            let (after, moved) = standing.step(rate, &LIMITS, time_s);
            assert_eq!((after.raised, moved), (raised, changed), "at {time_s}");
            standing = after;
        }
        assert!(standing == AT_REST);
    }

    #[test]
    fn only_write_rates_of_vms_count_and_those_of_one_vm_add_up() {
        let row = |class: &str, uuid: &str, name: &str| MetricRow {
            class: class.to_owned(),
            uuid: uuid.to_owned(),
            name: name.to_owned(),
            value: 1.0,
        };
        let rows = [
            row("VM", "a", "vbd_xvda_write"),
            row("VM", "a", "vbd_xvdb_write"),
            row("VM", "a", "vbd_xvda_read"),
            row("VM", "a", "vbd_xvda_io_throughput_write"),
            row("VM", "b", "vbd_hda_write"),
            row("SR", "a", "vbd_xvda_write"),
        ];
        assert_eq!(rates(&rows), BTreeMap::from([("a", 2.0), ("b", 1.0)]));
    }
}
