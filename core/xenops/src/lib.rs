//! Domain life cycle as plans of atoms with undo.
//!
//! [`Xenops`] turns wishes about VMs into steps on two traits: a [`hypervisor::Hypervisor`] that
//! runs domains and [`Disks`] that serves their disks. It knows nothing of XenAPI and nothing of
//! images. Each VM has one owner task with a bounded queue of a closed set of commands; so what
//! happens to one VM happens in order, and a stuck VM holds up nobody else.
//!
//! ```text
//!             start                               unpause
//!   Halted ----------> (start plan) ----> Paused <--------> Running
//!     ^  ^                |  fails: undone   |     pause       |  \
//!     |  +----------------+                  |                 |   \ the guest ends by itself
//!     |                                      |                 |    \
//!     +------------- (stop plan) <-----------+-----------------+     v
//!     |                                                     on_poweroff, on_reboot, on_crash:
//!     +---------------- destroy <-----------------------------   destroy | restart | preserve
//! ```
//!
//! A *plan* is a list of *atoms*. An atom has a name, something to do and, where that leaves
//! something behind, an atom that undoes it. When an atom fails, is cancelled or passes its
//! deadline, it and those before it are undone in reverse order; all atoms are idempotent, so
//! undoing what never happened is harmless. Stopping never goes back: it goes on with the disks
//! that can be released and keeps a record of those that cannot.
//!
//! ```text
//!   start   journal(starting) · attach, activate (writable disks, then read-only ones)
//!           · create-domain · [unpause] · journal(up)
//!   stop    [ask-guest · await-end] · journal(stopping) · destroy-domain
//!           · deactivate, detach (each disk) · forget
//!   reboot  as stop with journal(rebooting) and without forget, then as start
//!   plug    note-disk · attach · activate · plug-disk · settle-disk
//!   unplug  unsettle-disk · unplug-disk · deactivate · detach · drop-disk
//! ```
//!
//! The *record* of a VM is written before the first side effect and forgotten after the last one.
//! So after a crash of the daemon between any two instructions, the records and the hypervisor's
//! list say what to do ([`Xenops::adopt`]): a VM that was up and still has its domain is adopted, one
//! whose start or stop was cut short is stopped for good, one whose reboot was cut short is started,
//! one whose domain vanished is released. A disk is never released while a domain may use it.

#![forbid(unsafe_code)]

mod adoption;
mod atom;
mod change;
mod command;
mod disks;
mod error;
mod events;
mod operation;
mod owner;
mod plan;
mod record;
mod spec;
mod state;
mod xenops;

pub use adoption::Adoption;
pub use change::{Change, Changes};
pub use disks::{DiskError, DiskRef, Disks};
pub use error::{Error, ErrorKind};
pub use operation::{Operation, OperationKind, Progress};
pub use spec::{CallContext, GuestEndAction, Manner, StartAs, VbdSpec, VmSpec};
pub use state::{PowerState, VbdState, VmState};
pub use xenops::{Xenops, XenopsConfig};
