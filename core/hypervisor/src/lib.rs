//! The hypervisor as the toolstack sees it, and a simulator of it.
//!
//! A [`Hypervisor`] creates, pauses and destroys domains and says what became of them. It knows
//! nothing of XenAPI, storage or plans: `xenops` decides, a back end does.
//!
//! ```text
//!              create                unpause
//!   (no domain) ----> Paused <------------------> Running
//!        ^              |            pause           |
//!        |              |                            | the guest powers off, reboots or crashes
//!        |   destroy    v                            v
//!        +--------- any state <------------- Shutdown(reason)
//! ```
//!
//! A domain whose guest has ended stays, stopped, as [`DomainState::Shutdown`] until it is
//! destroyed: so the reason is still there for a daemon that was dead when it happened. No back end
//! restarts a guest by itself.
//!
//! Who checks what: callers keep at most one call per domain under way that changes it; back ends
//! check everything that reaches a command line, a socket or the hypervisor. Every call is
//! idempotent: "destroy" of a domain that is gone is a success, "pause" of a paused one too.
//!
//! | back end     | crate               | runs                                  |
//! |--------------|---------------------|---------------------------------------|
//! | [`Simulator`]| this one            | nothing; in memory, or kept in a file |
//! | `Qemu`       | `qemu`              | qemu-system-x86_64 over QMP           |
//!
//! All of them pass the one suite in [`conformance`].

#![forbid(unsafe_code)]

pub mod conformance;
mod device;
mod domain;
mod error;
pub mod simulator;

pub use device::DeviceName;
pub use domain::{
    Access, Acknowledgement, Boot, Console, ConsoleEndpoint, Created, DiskConfig, Domain,
    DomainConfig, DomainStat, DomainState, Event, EventKind, NbdTarget, Outcome, ShutdownReason,
    ShutdownRequest,
};
pub use error::{Error, ErrorKind};
pub use simulator::Simulator;

use tokio::sync::broadcast;
use units::VmUuid;

/// What runs domains. See the crate's page for states and who checks what.
///
/// Cancel safety, for all calls: dropping one leaves the domain as it was or as it should be, never
/// in between for good; the caller repeats the call or destroys the domain.
#[async_trait::async_trait]
pub trait Hypervisor: Send + Sync + std::fmt::Debug {
    /// Names the back end, e.g. `qemu`; a constant.
    fn name(&self) -> &'static str;

    /// Creates a domain, paused before its first instruction.
    ///
    /// Repeating the call with an equal configuration while the domain lives answers
    /// [`Outcome::AlreadyThere`]. When it fails, something of the domain may be there: `destroy`
    /// takes it away.
    ///
    /// # Errors
    /// `Exists` for a live domain of that uuid with another configuration; `Invalid` for a
    /// configuration that cannot be; `Failed` when the hypervisor refused.
    async fn create(&self, config: &DomainConfig) -> Result<Created, Error>;

    /// Stops a domain at once and takes away all of it. A domain that is not there is a success.
    ///
    /// When it returns, nothing of the domain touches its disks any more and its record is gone.
    async fn destroy(&self, vm: VmUuid) -> Result<(), Error>;

    /// Stops the vCPUs. A paused domain stays paused.
    ///
    /// # Errors
    /// `NotFound`; `BadState` when the guest has ended.
    async fn pause(&self, vm: VmUuid) -> Result<(), Error>;

    /// Lets the vCPUs run. A running domain goes on running.
    ///
    /// # Errors
    /// `NotFound`; `BadState` when the guest has ended.
    async fn unpause(&self, vm: VmUuid) -> Result<(), Error>;

    /// Asks the guest to end, and returns when it has said that it will.
    ///
    /// Waits without limit for a guest that does not answer: the caller sets the limit. That it
    /// *has* ended comes as an [`EventKind::Shutdown`]. A guest that has ended already is a
    /// success. A guest may answer a wish for a reboot by powering off; the caller decides.
    ///
    /// # Errors
    /// `NotFound`; `BadState` for a paused domain, which cannot answer.
    async fn request_shutdown(
        &self,
        vm: VmUuid,
        request: ShutdownRequest,
    ) -> Result<Acknowledgement, Error>;

    /// Gives a disk to a live domain. The same disk at the same device again is a success.
    ///
    /// # Errors
    /// `NotFound`; `Exists` when another disk is there; `Failed` when the disk cannot be reached.
    async fn plug_disk(&self, vm: VmUuid, disk: &DiskConfig) -> Result<(), Error>;

    /// Takes a disk from a live domain and returns when nothing uses it any more. A device with no
    /// disk is a success.
    ///
    /// # Errors
    /// `NotFound` when there is no such domain; `Refused` when the guest did not let it go in the
    /// back end's time.
    async fn unplug_disk(&self, vm: VmUuid, device: DeviceName) -> Result<(), Error>;

    /// Lists all domains that this back end runs, also those it did not create itself in this
    /// process's life.
    async fn list(&self) -> Result<Vec<Domain>, Error>;

    /// Measures one domain.
    ///
    /// # Errors
    /// `NotFound`.
    async fn stat(&self, vm: VmUuid) -> Result<DomainStat, Error>;

    /// Says where the text console is; `None` when the domain was given none.
    ///
    /// # Errors
    /// `NotFound`.
    async fn console(&self, vm: VmUuid) -> Result<Option<Console>, Error>;

    /// Follows what domains do by themselves, from now on.
    ///
    /// The queue is bounded; a receiver that lags must `list` again. `destroy` sends no event.
    fn subscribe(&self) -> broadcast::Receiver<Event>;
}
