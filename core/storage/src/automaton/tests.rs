//! The tables, written down once more by hand.

use super::*;
use Access::{ReadOnly as Ro, ReadWrite as Rw};
use DpState::{Activated as Act, Attached as Att};

/// Rows of the SMAPIv2 datapath table in its order: from, then attach RO, attach RW, activate,
/// deactivate, detach; `None` is an error. Where SMAPIv2 has an error that this automaton defines,
/// the entry is in [`DEFINED_HERE`] instead.
type Row = (Option<DpState>, [Option<Option<DpState>>; 5]);

const SMAPIV2: [Row; 5] = [
    (
        None,
        [
            Some(Some(Att(Ro))),
            Some(Some(Att(Rw))),
            None,
            Some(None),
            Some(None),
        ],
    ),
    (
        Some(Att(Ro)),
        [
            Some(Some(Att(Ro))),
            None,
            Some(Some(Act(Ro))),
            Some(Some(Att(Ro))),
            Some(None),
        ],
    ),
    (
        Some(Att(Rw)),
        [
            Some(Some(Att(Rw))),
            Some(Some(Att(Rw))),
            Some(Some(Act(Rw))),
            Some(Some(Att(Rw))),
            Some(None),
        ],
    ),
    (
        Some(Act(Ro)),
        [
            Some(Some(Act(Ro))),
            None,
            Some(Some(Act(Ro))),
            Some(Some(Att(Ro))),
            None,
        ],
    ),
    (
        Some(Act(Rw)),
        [
            Some(Some(Act(Rw))),
            Some(Some(Act(Rw))),
            Some(Some(Act(Rw))),
            Some(Some(Att(Rw))),
            None,
        ],
    ),
];

const DEFINED_HERE: [(DpState, DpOp, DpState); 2] = [
    (Att(Ro), DpOp::Attach(Rw), Att(Rw)),
    (Act(Ro), DpOp::Attach(Rw), Act(Rw)),
];

#[test]
fn steps_are_those_of_smapiv2_and_upgrades_are_defined() {
    let ops = [
        DpOp::Attach(Ro),
        DpOp::Attach(Rw),
        DpOp::Activate,
        DpOp::Deactivate,
        DpOp::Detach,
    ];
    for (from, row) in SMAPIV2 {
        for (op, expected) in ops.into_iter().zip(row) {
            let defined = DEFINED_HERE
                .iter()
                .find(|(f, o, _)| Some(*f) == from && *o == op);
            let expected = defined.map_or(expected, |(_, _, to)| Some(Some(*to)));
            let got = step(from, op);
            match expected {
                Some(to) => assert_eq!(got, Ok(to), "{from:?} {op:?}"),
                None => assert_eq!(got, Err(IllegalTransition { from, op }), "{from:?} {op:?}"),
            }
        }
    }
}

#[test]
fn the_superstate_is_what_all_want_together() {
    let cases: [(&[DpState], Option<DpState>); 8] = [
        (&[], None),
        (&[Att(Ro)], Some(Att(Ro))),
        (&[Att(Ro), Att(Rw)], Some(Att(Rw))),
        (&[Att(Ro), Act(Ro)], Some(Act(Ro))),
        (&[Act(Ro), Act(Rw)], Some(Act(Rw))),
        (&[Act(Rw), Att(Ro)], Some(Act(Rw))),
        // A writer that is not activated yet leaves the readers alone.
        (&[Act(Ro), Att(Rw)], Some(Act(Ro))),
        (&[Att(Rw), Act(Ro), Act(Ro)], Some(Act(Ro))),
    ];
    for (dps, expected) in cases {
        assert_eq!(superstate(dps.iter().copied()), expected, "{dps:?}");
        assert_eq!(
            superstate(dps.iter().rev().copied()),
            expected,
            "{dps:?} in reverse"
        );
    }
}

#[test]
fn the_data_path_is_called_only_when_the_superstate_changes() {
    let cases = [
        (None, None, BackendCall::Nothing),
        (None, Some(Att(Rw)), BackendCall::Nothing),
        (None, Some(Act(Ro)), BackendCall::Open(Ro)),
        (None, Some(Act(Rw)), BackendCall::Open(Rw)),
        (Some(Ro), Some(Act(Ro)), BackendCall::Nothing),
        (Some(Rw), Some(Act(Rw)), BackendCall::Nothing),
        (Some(Ro), Some(Act(Rw)), BackendCall::Reopen(Rw)),
        (Some(Rw), Some(Act(Ro)), BackendCall::Reopen(Ro)),
        (Some(Rw), Some(Att(Rw)), BackendCall::Close),
        (Some(Ro), None, BackendCall::Close),
    ];
    for (open, wanted, expected) in cases {
        assert_eq!(
            backend_call(open, wanted),
            expected,
            "{open:?} to {wanted:?}"
        );
    }
}
