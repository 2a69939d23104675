//! The stages of a run, in order: every point of fio on every medium, then the experiments.

use crate::measure::Effort;
use crate::plan::{Medium, Point};
use crate::points::POINTS;
use std::time::Duration;

/// One part of a run, after which there are rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    /// The servers at one kind of work.
    Point(&'static Point, Medium),
    Experiment(Experiment, Medium),
}

/// What needs more than servers and fio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Experiment {
    /// P7.
    Chains,
    /// P7.
    OpenChain,
    /// P9.
    VhostUser,
    /// P10, on files that nobody has open.
    Offline,
    /// P10, on a disk in use.
    Coalesce,
    /// P11.
    Snapshot,
    /// P12.
    Mirror,
    /// P13.
    Memory,
    /// P14.
    Check,
}

impl Experiment {
    const ALL: [(Self, &'static [Medium]); 9] = [
        (Self::Chains, &[Medium::DiskDirect]),
        (Self::OpenChain, &[Medium::DiskDirect]),
        (Self::VhostUser, &[Medium::DiskDirect]),
        (Self::Offline, &Medium::ALL),
        (Self::Coalesce, &[Medium::DiskDirect, Medium::Tmpfs]),
        (Self::Snapshot, &[Medium::DiskDirect, Medium::Tmpfs]),
        (Self::Mirror, &[Medium::DiskDirect, Medium::Tmpfs]),
        (Self::Memory, &[Medium::Tmpfs]),
        (Self::Check, &[Medium::DiskCached, Medium::Tmpfs]),
    ];

    fn id(self) -> &'static str {
        match self {
            Self::Chains | Self::OpenChain => "P7",
            Self::VhostUser => "P9",
            Self::Offline | Self::Coalesce => "P10",
            Self::Snapshot => "P11",
            Self::Mirror => "P12",
            Self::Memory => "P13",
            Self::Check => "P14",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Chains => "chains of 30 and 500 layers beside their base",
            Self::OpenChain => "opening 30 layers of 1 TiB",
            Self::VhostUser => "vhost-user-blk",
            Self::Offline => "coalescing without a guest",
            Self::Coalesce => "coalescing a disk in use",
            Self::Mirror => "mirrors of a disk in use",
            Self::Snapshot => "snapshots of a busy disk",
            Self::Memory => "memory of a disk of 1 TiB",
            Self::Check => "checking 256 GiB",
        }
    }

    fn seconds(self, quick: bool) -> u64 {
        match (self, quick) {
            (Self::Chains, true) => 15,
            (Self::Chains, false) => 120,
            (Self::OpenChain, true) => 5,
            (Self::OpenChain, false) => 10,
            (Self::VhostUser, true) => 4,
            (Self::VhostUser, false) => 25,
            (Self::Offline, true) => 5,
            (Self::Offline, false) => 30,
            (Self::Coalesce | Self::Mirror, true) => 6,
            (Self::Coalesce, false) => 40,
            (Self::Mirror, false) => 30,
            (Self::Snapshot, true) => 3,
            (Self::Snapshot, false) => 12,
            (Self::Memory | Self::Check, _) => 3,
        }
    }
}

impl Stage {
    /// All of them, in order.
    pub(crate) fn all(effort: &Effort) -> Vec<Self> {
        let mut all = Vec::new();
        for medium in Medium::ALL {
            let points = POINTS.iter().filter(|point| effort.has(point, medium));
            all.extend(points.map(|point| Self::Point(point, medium)));
        }
        for (experiment, media) in Experiment::ALL {
            all.extend(
                media
                    .iter()
                    .map(|medium| Self::Experiment(experiment, *medium)),
            );
        }
        all
    }

    /// For progress, and in the file to go on from.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Point(point, medium) => format!("{}: {}", medium.name(), point.work),
            Self::Experiment(experiment, medium) => {
                format!("{}: {}", medium.name(), experiment.name())
            }
        }
    }

    pub(crate) fn medium(self) -> Medium {
        match self {
            Self::Point(_, medium) | Self::Experiment(_, medium) => medium,
        }
    }

    /// Whether it makes a row of an id that is wanted.
    pub(crate) fn serves(self, wants: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Point(point, medium) => {
                let goals = point
                    .goals
                    .iter()
                    .filter(|goal| goal.media.contains(&medium));
                goals.into_iter().any(|goal| wants(goal.id))
            }
            Self::Experiment(experiment, _) => wants(experiment.id()),
        }
    }

    /// How long it takes, about, on a quiet machine.
    pub(crate) fn estimate(self, effort: &Effort) -> Duration {
        match self {
            Self::Point(point, medium) => effort.estimate(point, medium),
            Self::Experiment(experiment, _) => {
                Duration::from_secs(experiment.seconds(effort.quick))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_stages_have_one_name() {
        let all = Stage::all(&Effort::new(false, None, None));
        let names: BTreeSet<String> = all.iter().map(|stage| stage.name()).collect();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn a_full_run_takes_twenty_five_minutes_at_most() {
        let effort = Effort::new(false, None, None);
        let all = Stage::all(&effort);
        let sum: Duration = all.iter().map(|stage| stage.estimate(&effort)).sum();
        assert!(sum <= Duration::from_secs(25 * 60), "{sum:?}");
    }
}
