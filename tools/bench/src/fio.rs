//! The one client of all servers: fio with its NBD engine.

use crate::process;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// What fio may take beyond the time it is told to run.
const SLACK: Duration = Duration::from_secs(60);

/// Which bytes are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Anywhere.
    Random,
    /// One after the other.
    Sequential,
    /// The start of each 2 MiB, in order.
    EachBlock,
}

/// Reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// When the client asks for a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    Never,
    /// Before the next write after so many.
    Every(u64),
    /// Once; its time counts.
    AtEnd,
}

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// After so many milliseconds.
    Time(u64),
    /// After so many requests.
    Requests(u64),
}

/// One run of the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) pattern: Pattern,
    pub(crate) direction: Direction,
    pub(crate) request_bytes: u64,
    /// Requests in flight on each connection.
    pub(crate) depth: u32,
    /// Connections.
    pub(crate) clients: u32,
    pub(crate) flush: Flush,
    pub(crate) until: Until,
    /// Which random offsets; the same for all servers of a round.
    pub(crate) seed: u64,
}

/// What the client saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    /// Reads or writes.
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) flushes: u64,
    pub(crate) seconds: f64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// CPU the client used, in cores; near one and the client is the limit, not the server.
    pub(crate) client_cores: f64,
}

impl Job {
    /// The command that runs this job and leaves its report in `report`.
    pub(crate) fn command(&self, uri: &str, report: &Path) -> Command {
        let mut fio = Command::new("fio");
        fio.args(["--thread", "--eta=never", "--output-format=json"])
            .arg(format!("--output={}", report.display()))
            .args(["--name=bench", "--ioengine=nbd", "--norandommap"])
            .arg(format!("--uri={uri}"))
            .arg(format!("--rw={}", self.rw()))
            .arg(format!("--bs={}", self.request_bytes))
            .arg(format!("--iodepth={}", self.depth))
            .arg(format!("--numjobs={}", self.clients))
            .arg("--group_reporting")
            .arg(format!("--randseed={}", self.seed.saturating_add(1)));
        match self.flush {
            Flush::Never => {}
            Flush::Every(writes) => {
                fio.arg(format!("--fsync={writes}"));
            }
            Flush::AtEnd => {
                fio.arg("--end_fsync=1");
            }
        }
        match self.until {
            Until::Time(ms) => fio.args(["--time_based", &format!("--runtime={ms}ms")]),
            Until::Requests(count) => fio.arg(format!("--number_ios={count}")),
        };
        fio
    }

    /// Runs the job against a server.
    ///
    /// # Errors
    /// When fio fails, takes too long, or a request failed.
    ///
    /// # Cancel safety
    /// Safe: fio is ended.
    pub(crate) async fn run(&self, uri: &str, dir: &Path) -> Result<Outcome> {
        let report = dir.join("fio.json");
        process::output(self.command(uri, &report), self.deadline()).await?;
        outcome(&report)
    }

    /// How long the job may take.
    pub(crate) fn deadline(&self) -> Duration {
        match self.until {
            Until::Time(ms) => SLACK + Duration::from_millis(ms),
            Until::Requests(_) => SLACK,
        }
    }

    /// Whether it changes the image.
    pub(crate) fn writes(&self) -> bool {
        self.direction == Direction::Write
    }

    fn rw(&self) -> String {
        let direction = match self.direction {
            Direction::Read => "read",
            Direction::Write => "write",
        };
        match self.pattern {
            Pattern::Random => format!("rand{direction}"),
            Pattern::Sequential => direction.to_owned(),
            Pattern::EachBlock => {
                let gap_bytes = (2u64 << 20).saturating_sub(self.request_bytes);
                format!("{direction}:{gap_bytes}")
            }
        }
    }
}

/// Reads a report.
pub(crate) fn outcome(report: &Path) -> Result<Outcome> {
    let text = std::fs::read_to_string(report).context("reading fio's report")?;
    parse(&text).context("understanding fio's report")
}

fn parse(report: &str) -> Result<Outcome> {
    // Notes and complaints go to the same file, before the JSON.
    let (notes, json) = report.split_at(report.find("{\n").unwrap_or(0));
    let report: Value = serde_json::from_str(json).with_context(|| notes.to_owned())?;
    let job = report.pointer("/jobs/0").context("no job")?;
    let number = |path: &str| {
        let value = job.pointer(path).and_then(Value::as_f64);
        value.with_context(|| format!("no number at {path}"))
    };
    if number("/error")? != 0.0 {
        bail!("fio ended with error {}: {notes}", number("/error")?);
    }
    let reads = number("/read/total_ios")?;
    let side = if reads > 0.0 { "/read" } else { "/write" };
    let requests = number(&format!("{side}/total_ios"))?;
    if requests == 0.0 {
        bail!("not one request was made");
    }
    let percentile = |p: &str| number(&format!("{side}/clat_ns/percentile/{p}"));
    Ok(Outcome {
        requests: requests as u64,
        bytes: number(&format!("{side}/io_bytes"))? as u64,
        flushes: number("/sync/total_ios").unwrap_or(0.0) as u64,
        seconds: number(&format!("{side}/runtime"))?.max(1.0) / 1e3,
        mean_us: number(&format!("{side}/lat_ns/mean"))? / 1e3,
        p50_us: percentile("50.000000")? / 1e3,
        p99_us: percentile("99.000000")? / 1e3,
        client_cores: (number("/usr_cpu")? + number("/sys_cpu")?) / 100.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"note: this is not JSON
{
"jobs":[{"error":0,"usr_cpu":40.5,"sys_cpu":50.0,
        "read":{"total_ios":0,"io_bytes":0,"runtime":0,"lat_ns":{"mean":0}},
        "write":{"total_ios":1000,"io_bytes":4096000,"runtime":500,"lat_ns":{"mean":31000.5},
            "clat_ns":{"percentile":{"50.000000":30000,"99.000000":90000}}},
        "sync":{"total_ios":125}}]}"#;

    #[test]
    fn the_side_that_did_something_is_reported() {
        let expected = Outcome {
            requests: 1000,
            bytes: 4_096_000,
            flushes: 125,
            seconds: 0.5,
            mean_us: 31.0005,
            p50_us: 30.0,
            p99_us: 90.0,
            client_cores: 0.905,
        };
        assert_eq!(parse(REPORT).unwrap(), expected);
    }

    #[test]
    fn failed_and_empty_runs_are_errors() {
        for (from, to) in [
            ("\"error\":0", "\"error\":5"),
            ("\"total_ios\":1000", "\"total_ios\":0"),
            ("\"runtime\":500", "\"walltime\":500"),
        ] {
            assert!(parse(&REPORT.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn a_touch_of_each_block_leaves_out_the_rest_of_it() {
        let job = Job {
            pattern: Pattern::EachBlock,
            direction: Direction::Write,
            request_bytes: 4096,
            depth: 1,
            clients: 1,
            flush: Flush::Never,
            until: Until::Requests(1),
            seed: 0,
        };
        assert_eq!(job.rw(), "write:2093056");
    }
}
