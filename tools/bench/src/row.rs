//! One row of the result: what was measured for one aim.

use crate::kind::{Kind, TAPDISK_PROMISE};
use crate::measured::Measured;
use crate::plan::{Against, Aim, Goal, TAPDISK};
use crate::stats::{Summary, part_of};
use serde::{Deserialize, Serialize};

/// A client that uses more of its core than this is the limit, not the server.
const CLIENT_BOUND_CORES: f64 = 0.9;

/// One aim and what was measured for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) id: String,
    /// The work and the metric with its unit.
    pub(crate) work: String,
    pub(crate) medium: String,
    /// Median of ours.
    pub(crate) ours: f64,
    /// Median of the peer's.
    pub(crate) peer: Option<f64>,
    pub(crate) peer_name: Option<String>,
    /// Median of ours divided by theirs, pair by pair.
    pub(crate) ratio: Option<f64>,
    pub(crate) aim: String,
    pub(crate) met: bool,
    /// How many times it was measured.
    pub(crate) pairs: usize,
    /// First and third quartile of ours.
    pub(crate) ours_spread: [f64; 2],
    /// First and third quartile of the peer's.
    pub(crate) peer_spread: Option<[f64; 2]>,
    /// First and third quartile of the ratio.
    pub(crate) ratio_spread: Option<[f64; 2]>,
    /// The peer's value was measured elsewhere and earlier, not in this run.
    pub(crate) recorded: bool,
    /// Most cores that others used during one of the rounds.
    pub(crate) foreign_cores: Option<f64>,
    /// What an answered write and flush are worth at the peer.
    pub(crate) peer_promise: Option<String>,
    /// What limits or qualifies the values.
    pub(crate) note: Option<String>,
    /// The part of the plan it belongs to.
    pub(crate) stage: String,
}

/// The other side of a row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    pub(crate) name: String,
    /// As many as ours, in the same order; one when it is recorded.
    pub(crate) values: Vec<f64>,
    pub(crate) recorded: bool,
}

impl Row {
    /// A row of what was measured without a peer; `None` when nothing was measured.
    pub(crate) fn alone(
        id: &str,
        work: &str,
        medium: &str,
        ours: &[f64],
        aim: Aim,
    ) -> Option<Self> {
        let summary = Summary::of(ours)?;
        Some(Self {
            id: id.to_owned(),
            work: work.to_owned(),
            medium: medium.to_owned(),
            ours: summary.median,
            peer: None,
            peer_name: None,
            ratio: None,
            aim: aim.to_string(),
            met: aim.is_met(summary.median, None),
            pairs: ours.len(),
            ours_spread: [summary.low, summary.high],
            peer_spread: None,
            ratio_spread: None,
            recorded: false,
            foreign_cores: None,
            peer_promise: None,
            note: None,
            stage: String::new(),
        })
    }

    /// A row of what was measured in pairs, or against one recorded value.
    pub(crate) fn against(
        id: &str,
        work: &str,
        medium: &str,
        ours: &[f64],
        peer: &Peer,
        aim: Aim,
    ) -> Option<Self> {
        let mut theirs = peer.values.clone();
        if let ([value], true) = (peer.values.as_slice(), peer.recorded) {
            theirs = vec![*value; ours.len()];
        }
        let mut row = Self::alone(id, work, medium, ours, aim)?;
        let summary = Summary::of(&theirs)?;
        let ratio = Summary::of_ratios(ours, &theirs);
        row.peer = Some(summary.median);
        row.peer_name = Some(peer.name.clone());
        row.peer_spread = (!peer.recorded).then_some([summary.low, summary.high]);
        row.ratio = ratio.map(|r| r.median);
        row.ratio_spread = ratio.map(|r| [r.low, r.high]);
        row.met = aim.is_met(row.ours, row.ratio);
        row.recorded = peer.recorded;
        row.pairs = ours.len().min(theirs.len());
        Some(row)
    }

    /// A row of which the value is the part of measurements below which so many lie, such as 0.99;
    /// the spreads are quartiles still.
    pub(crate) fn of_part(
        id: &str,
        work: &str,
        medium: &str,
        part: f64,
        ours: &[f64],
        peer: &Peer,
        aim: Aim,
    ) -> Option<Self> {
        let mut row = Self::against(id, work, medium, ours, peer, aim)?;
        let (our, their) = (part_of(ours, part)?, part_of(&peer.values, part)?);
        row.ours = our;
        row.peer = Some(their);
        row.ratio = Some(our / their);
        row.ratio_spread = None;
        row.met = aim.is_met(our, row.ratio);
        Some(row)
    }

    /// With a remark.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// The row of a goal; `None` when it was not measured (no counter for it on this machine).
    pub(crate) fn of(goal: &Goal, measured: &Measured, disk: &str) -> Option<Self> {
        let metric = goal.metric;
        let work = format!("{}: {}", measured.point.work, metric.name());
        let medium = measured.medium.on(disk);
        let alone = measured.values(Kind::OURS, metric);
        let mut row = match goal.against {
            Against::Nothing => Self::alone(goal.id, &work, &medium, &alone, goal.aim)?,
            Against::Recorded(name, value) => {
                let peer = Peer {
                    name: name.to_owned(),
                    values: vec![value],
                    recorded: true,
                };
                let mut row = Self::against(goal.id, &work, &medium, &alone, &peer, goal.aim)?;
                row.peer_promise = (name == TAPDISK).then(|| TAPDISK_PROMISE.to_owned());
                row
            }
            Against::Peer(_) | Against::BestPeer => {
                let kind = measured.best(&measured.peers(goal.against), metric)?;
                let (ours, values) = measured.pairs(kind, metric);
                let peer = Peer {
                    name: kind.name(),
                    values,
                    recorded: false,
                };
                let mut row = Self::against(goal.id, &work, &medium, &ours, &peer, goal.aim)?;
                row.peer_promise = Some(kind.family.promise().to_owned());
                row
            }
        };
        row.foreign_cores = measured.foreign_cores().map(|(_, most)| most);
        // A limit of the client holds for the requests per second alone.
        if metric.more_is_better() {
            row.note = client_bound(measured);
        }
        Some(row)
    }
}

fn client_bound(measured: &Measured) -> Option<String> {
    let cores = measured.client_cores(Kind::OURS)?;
    (cores > CLIENT_BOUND_CORES)
        .then(|| format!("the client is the limit: it uses {cores:.2} cores against ours"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_agreed_keys() {
        let row = Row::alone("P13", "x", "tmpfs", &[2.0], Aim::Most(3.0)).unwrap();
        let json = serde_json::to_value(&row).unwrap();
        for key in [
            "id",
            "work",
            "medium",
            "ours",
            "peer",
            "peer_name",
            "ratio",
            "aim",
            "met",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_recorded_value_is_compared_with_every_one_of_ours() {
        let peer = Peer {
            name: TAPDISK.to_owned(),
            values: vec![10.0],
            recorded: true,
        };
        let aim = Aim::MostTimes(0.3);
        let row = Row::against("P1", "x", "tmpfs", &[1.0, 2.0, 9.0], &peer, aim).unwrap();
        assert_eq!((row.ratio, row.pairs, row.met), (Some(0.2), 3, true));
        assert!(row.recorded && row.peer_spread.is_none());
    }

    #[test]
    fn a_row_of_a_part_is_judged_by_that_part() {
        let ours: Vec<f64> = (1..=101).map(f64::from).collect();
        let peer = Peer {
            name: "calm".to_owned(),
            values: vec![10.0; 101],
            recorded: false,
        };
        let row = Row::of_part("P11", "x", "tmpfs", 0.99, &ours, &peer, Aim::Most(99.0));
        let row = row.unwrap();
        assert_eq!((row.ours, row.ratio, row.met), (100.0, Some(10.0), false));
        assert_eq!(row.ours_spread, [26.0, 76.0]);
    }

    #[test]
    fn what_was_not_measured_has_no_row() {
        assert!(Row::alone("P1", "x", "tmpfs", &[], Aim::Most(1.0)).is_none());
        let nobody = Peer::default();
        assert!(Row::against("P1", "x", "tmpfs", &[1.0], &nobody, Aim::Most(1.0)).is_none());
    }
}
