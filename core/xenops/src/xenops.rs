//! The handle the layer above holds. It only puts commands in queues and reads states.

use crate::adoption::{self, Adoption};
use crate::change::Changes;
use crate::command::{Body, Command};
use crate::disks::Disks;
use crate::error::{Error, ErrorKind};
use crate::events;
use crate::operation::{Operation, OperationKind};
use crate::owner::{self, Handle};
use crate::record::Record;
use crate::spec::{CallContext, Manner, StartAs, VbdSpec, VmSpec};
use crate::state::VmState;
use database::{Bucket, Database};
use hypervisor::{Domain, DomainStat, Hypervisor};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use units::{VbdUuid, VmUuid};

/// Name of the database bucket that holds the records.
const BUCKET: &str = "xenops-domains";

/// Limits and times. The defaults are those that users of other toolstacks know.
#[derive(Debug, Clone)]
pub struct XenopsConfig {
    /// Commands that may wait for one VM.
    pub queue_length: usize,
    /// VMs that may have a domain or a command at one time.
    pub vms_max: usize,
    /// Changes a subscriber may be behind before it has to read everything again.
    pub changes_behind_max: usize,
    /// How long one atom may take.
    pub atom_deadline: Duration,
    /// How long a guest may take to answer a wish to shut down.
    pub acknowledge_deadline: Duration,
    /// A guest that crashes sooner than this after its start is not restarted.
    pub crash_loop_window: Duration,
    /// A guest that reboots itself sooner than this after its start waits `reboot_delay`.
    pub reboot_interval_min: Duration,
    /// See `reboot_interval_min`.
    pub reboot_delay: Duration,
}

impl Default for XenopsConfig {
    fn default() -> Self {
        Self {
            queue_length: 16,
            vms_max: 4096,
            changes_behind_max: 4096,
            atom_deadline: Duration::from_secs(120),
            acknowledge_deadline: Duration::from_secs(60),
            crash_loop_window: Duration::from_secs(120),
            reboot_interval_min: Duration::from_secs(120),
            reboot_delay: Duration::from_secs(15),
        }
    }
}

/// The domain manager. Cheap to clone.
///
/// When the last clone is dropped every operation stops where it stands, as if the process had been
/// killed; domains and disks stay as they are for the next [`Xenops::open`] to adopt.
/// [`Xenops::close`] ends in good order.
#[derive(Clone)]
pub struct Xenops {
    shared: Arc<Shared>,
    adoption: Arc<Mutex<Option<adoption::Pending>>>,
    _stop_on_drop: Arc<DropGuard>,
}

impl std::fmt::Debug for Xenops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Xenops")
            .field("hypervisor", &self.shared.hypervisor.name())
            .finish()
    }
}

/// What all owner tasks share.
pub(crate) struct Shared {
    pub(crate) config: XenopsConfig,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) disks: Arc<dyn Disks>,
    pub(crate) records: Bucket<Record>,
    pub(crate) owners: Mutex<Owners>,
    pub(crate) changes: broadcast::Sender<Arc<VmState>>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    clock: (Instant, i64),
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[derive(Default)]
pub(crate) struct Owners {
    pub(crate) by_vm: BTreeMap<VmUuid, Handle>,
    closed: bool,
}

impl Shared {
    /// Milliseconds since 1970 by a clock that nobody sets back while we run.
    pub(crate) fn now_ms(&self) -> i64 {
        let (start, start_ms) = self.clock;
        let passed = i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX);
        start_ms.saturating_add(passed)
    }

    pub(crate) fn states(&self) -> Vec<VmState> {
        let owners = self.owners.lock();
        owners
            .by_vm
            .values()
            .map(|owner| owner.state.borrow().as_ref().clone())
            .collect()
    }
}

fn wall_clock_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Xenops {
    /// Starts the domain manager: reads the records, lists the domains and begins to adopt.
    ///
    /// Commands may be given at once; those for a VM that is being adopted wait for that.
    ///
    /// # Errors
    /// `Database` when the records cannot be read, `Hypervisor` when domains cannot be listed.
    pub async fn open(
        config: XenopsConfig,
        hypervisor: Arc<dyn Hypervisor>,
        database: &Database,
        disks: Arc<dyn Disks>,
    ) -> Result<Self, Error> {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            changes: broadcast::Sender::new(config.changes_behind_max.max(1)),
            config,
            hypervisor,
            disks,
            records: database.bucket(BUCKET),
            owners: Mutex::default(),
            stop: stop.clone(),
            tasks: TaskTracker::new(),
            clock: (Instant::now(), wall_clock_ms()),
        });
        let guard = stop.drop_guard();
        events::follow(&shared);
        let pending = adoption::begin(&shared).await?;
        Ok(Self {
            shared,
            adoption: Arc::new(Mutex::new(Some(pending))),
            _stop_on_drop: Arc::new(guard),
        })
    }

    /// Waits until everything found at [`Self::open`] is adopted or released, and says what became
    /// of it. The second call finds nothing more to say.
    pub async fn adopt(&self) -> Adoption {
        let pending = self.adoption.lock().take();
        match pending {
            Some(pending) => pending.finish(&self.shared).await,
            None => Adoption::default(),
        }
    }

    /// Starts a VM.
    ///
    /// # Errors
    /// From all operations: at once `QueueFull`, `TooManyVms` or `Closed`; later, from
    /// [`Operation::wait`], `BadState` when the VM is not in a state for it, `Cancelled`,
    /// `Timeout`, `Hypervisor`, `Disk`, `Database`. A start also ends with `Invalid`. After a
    /// failed start nothing of it is left.
    pub fn start(
        &self,
        call: &CallContext,
        spec: VmSpec,
        start_as: StartAs,
    ) -> Result<Operation, Error> {
        self.submit(
            call,
            spec.vm,
            OperationKind::Start,
            Body::Start(spec, start_as),
        )
    }

    /// Halts a VM. One that is halted already is a success.
    ///
    /// A hard shutdown does not wait for what is under way: it cancels that. After a failure the
    /// disks that could not be released are still on record, and the next shutdown or start tries
    /// again.
    ///
    /// # Errors
    /// See [`Self::start`]; when clean also `NotAcknowledged` and `DidNotShutDown`, and the VM
    /// goes on running.
    pub fn shutdown(
        &self,
        call: &CallContext,
        vm: VmUuid,
        manner: Manner,
    ) -> Result<Operation, Error> {
        let kind = match manner {
            Manner::Clean(_) => OperationKind::ShutdownClean,
            Manner::Hard => OperationKind::ShutdownHard,
        };
        self.submit(call, vm, kind, Body::Shutdown(manner))
    }

    /// Stops a running VM and starts it again with the disks it has now.
    ///
    /// # Errors
    /// As [`Self::shutdown`]. When the second half fails, the VM is halted.
    pub fn reboot(
        &self,
        call: &CallContext,
        vm: VmUuid,
        manner: Manner,
    ) -> Result<Operation, Error> {
        let kind = match manner {
            Manner::Clean(_) => OperationKind::RebootClean,
            Manner::Hard => OperationKind::RebootHard,
        };
        self.submit(call, vm, kind, Body::Reboot(manner))
    }

    /// Stops a running VM's vCPUs; a paused one stays so.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn pause(&self, call: &CallContext, vm: VmUuid) -> Result<Operation, Error> {
        self.submit(call, vm, OperationKind::Pause, Body::Pause)
    }

    /// Lets a paused VM's vCPUs run; a running one goes on.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn unpause(&self, call: &CallContext, vm: VmUuid) -> Result<Operation, Error> {
        self.submit(call, vm, OperationKind::Unpause, Body::Unpause)
    }

    /// Gives a disk to a live VM; the same one again is a success.
    ///
    /// # Errors
    /// See [`Self::start`]; `DeviceInUse`.
    pub fn vbd_plug(
        &self,
        call: &CallContext,
        vm: VmUuid,
        vbd: VbdSpec,
    ) -> Result<Operation, Error> {
        self.submit(call, vm, OperationKind::VbdPlug, Body::Plug(vbd))
    }

    /// Takes a disk from a live VM; one it has not got is a success.
    ///
    /// # Errors
    /// See [`Self::start`]; `GuestRefused`, and the guest keeps the disk.
    pub fn vbd_unplug(
        &self,
        call: &CallContext,
        vm: VmUuid,
        vbd: VbdUuid,
    ) -> Result<Operation, Error> {
        self.submit(call, vm, OperationKind::VbdUnplug, Body::Unplug(vbd))
    }

    /// Returns a VM as it is now; one that was never heard of is halted.
    pub fn state(&self, vm: VmUuid) -> VmState {
        let owners = self.shared.owners.lock();
        match owners.by_vm.get(&vm) {
            Some(owner) => owner.state.borrow().as_ref().clone(),
            None => VmState::halted(vm),
        }
    }

    /// Returns all VMs that have a domain or something to do.
    pub fn states(&self) -> Vec<VmState> {
        self.shared.states()
    }

    /// Follows what changes from now on; read [`Self::states`] after subscribing for what is.
    pub fn subscribe(&self) -> Changes {
        Changes::new(&self.shared)
    }

    /// Measures a live VM. Does not wait for the VM's queue.
    ///
    /// # Errors
    /// `BadState` for a halted VM, `Hypervisor`, `Timeout`.
    pub async fn stat(&self, vm: VmUuid) -> Result<DomainStat, Error> {
        let stat = self.shared.hypervisor.stat(vm);
        match tokio::time::timeout(self.shared.config.atom_deadline, stat).await {
            Ok(Ok(stat)) => Ok(stat),
            Ok(Err(error)) if error.kind() == hypervisor::ErrorKind::NotFound => Err(Error::new(
                ErrorKind::BadState,
                format!("vm {vm} is halted"),
            )),
            Ok(Err(error)) => Err(Error::hypervisor(vm, "stat", error)),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!("stat of vm {vm} took too long"),
            )),
        }
    }

    /// Lists all domains of the hypervisor, also those that are none of ours.
    ///
    /// # Errors
    /// `Hypervisor`.
    pub async fn domains(&self) -> Result<Vec<Domain>, Error> {
        let list = self.shared.hypervisor.list().await;
        list.map_err(|error| {
            Error::because(ErrorKind::Hypervisor, "cannot list the domains", error)
        })
    }

    /// Takes no more commands and waits until those given are done. Domains stay as they are.
    ///
    /// # Cancel safety
    /// Dropping the wait lets the drain go on; dropping the last handle ends it at once.
    pub async fn close(&self) {
        {
            let mut owners = self.shared.owners.lock();
            owners.closed = true;
            owners.by_vm.clear();
        }
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn submit(
        &self,
        call: &CallContext,
        vm: VmUuid,
        kind: OperationKind,
        body: Body,
    ) -> Result<Operation, Error> {
        self.shared.submit(call, vm, kind, body)
    }
}

impl Shared {
    /// Puts a command in the VM's queue and makes an owner if the VM has none. The lock makes this
    /// and an owner's retirement exclude each other.
    pub(crate) fn submit(
        self: &Arc<Self>,
        call: &CallContext,
        vm: VmUuid,
        kind: OperationKind,
        body: Body,
    ) -> Result<Operation, Error> {
        let mut owners = self.owners.lock();
        if owners.closed {
            return Err(Error::new(
                ErrorKind::Closed,
                format!("no {kind:?} of vm {vm}: stopping"),
            ));
        }
        if !owners.by_vm.contains_key(&vm) && owners.by_vm.len() >= self.config.vms_max {
            let context = format!(
                "vm {vm} is one more than the limit of {}",
                self.config.vms_max
            );
            return Err(Error::new(ErrorKind::TooManyVms, context));
        }
        let owner = owners
            .by_vm
            .entry(vm)
            .or_insert_with(|| owner::spawn(self, vm));
        let (operation, control) = Operation::pair(vm, kind);
        let command = Command {
            call: call.clone(),
            body,
            control,
        };
        owner.commands.try_send(command).map_err(|_| {
            let length = self.config.queue_length;
            let context = format!("{length} commands wait for vm {vm} already");
            Error::new(ErrorKind::QueueFull, context)
        })?;
        if matches!(
            kind,
            OperationKind::ShutdownHard | OperationKind::RebootHard
        ) {
            owner.cancel_current();
        }
        Ok(operation)
    }
}
