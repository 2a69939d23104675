//! The one task that changes a VM, and what it knows of it.
//!
//! The task lives while its VM has a domain, a record or a command. Commands come first in, first
//! out; between them it looks after a guest that has ended by itself.

use crate::atom::Atom;
use crate::command::{Body, Command};
use crate::error::{Error, ErrorKind};
use crate::operation::{Control, Operation, OperationKind};
use crate::plan::Plan;
use crate::record::{DiskRecord, Phase, Record};
use crate::spec::{CallContext, GuestEndAction, Manner, StartAs, VbdSpec, VmSpec};
use crate::state::{PowerState, VbdState, VmState};
use crate::xenops::Shared;
use hypervisor::{Console, Event, EventKind, NbdTarget, ShutdownReason};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use units::{VbdUuid, VmUuid};

type Current = Arc<Mutex<Option<CancellationToken>>>;

/// What others hold of an owner.
pub(crate) struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    /// The last thing the domain did by itself; an older one is of no interest.
    pub(crate) events: watch::Sender<Option<Event>>,
    pub(crate) state: watch::Receiver<Arc<VmState>>,
    current: Current,
}

impl Handle {
    pub(crate) fn cancel_current(&self) {
        if let Some(cancel) = self.current.lock().as_ref() {
            cancel.cancel();
        }
    }
}

/// What is known of a VM; atoms change it.
pub(crate) struct Machine {
    pub(crate) vm: VmUuid,
    pub(crate) shared: Arc<Shared>,
    pub(crate) record: Option<Record>,
    pub(crate) targets: BTreeMap<VbdUuid, NbdTarget>,
    pub(crate) domid: Option<u32>,
    pub(crate) power: PowerState,
    pub(crate) console: Option<Console>,
    pub(crate) events: watch::Receiver<Option<Event>>,
    last_end: Option<ShutdownReason>,
    operation: Option<OperationKind>,
    state: watch::Sender<Arc<VmState>>,
}

pub(crate) struct Owner {
    pub(crate) machine: Machine,
    commands: mpsc::Receiver<Command>,
    current: Current,
    /// When to restart a guest that rebooted too soon, and which domain that was.
    restart: Option<(Instant, u32)>,
}

/// Starts the owner of a VM. It ends at once when the last handle of the toolstack is dropped.
pub(crate) fn spawn(shared: &Arc<Shared>, vm: VmUuid) -> Handle {
    let (commands, commands_out) = mpsc::channel(shared.config.queue_length.max(1));
    let (events, events_out) = watch::channel(None);
    let (state, state_out) = watch::channel(Arc::new(VmState::halted(vm)));
    let current = Current::default();
    let machine = Machine {
        vm,
        shared: shared.clone(),
        record: None,
        targets: BTreeMap::new(),
        domid: None,
        power: PowerState::Halted,
        console: None,
        events: events_out,
        last_end: None,
        operation: None,
        state,
    };
    let mut owner = Owner {
        machine,
        commands: commands_out,
        current: current.clone(),
        restart: None,
    };
    let stop = shared.stop.clone();
    shared.tasks.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = owner.run() => {}
        }
    });
    Handle {
        commands,
        events,
        state: state_out,
        current,
    }
}

impl Machine {
    pub(crate) fn record(&self) -> Result<&Record, Error> {
        let absent = || Error::new(ErrorKind::BadState, format!("vm {} is halted", self.vm));
        self.record.as_ref().ok_or_else(absent)
    }

    fn describe(&self) -> VmState {
        let vbd = |disk: &DiskRecord| VbdState {
            vbd: disk.spec.vbd,
            device: disk.spec.device,
            plugged: disk.plugged && self.domid.is_some(),
        };
        let record = self.record.as_ref();
        VmState {
            vm: self.vm,
            power: self.power,
            domid: self.domid,
            started_at_ms: record
                .filter(|_| self.domid.is_some())
                .and_then(|r| r.started_at_ms),
            console: self.console.clone(),
            vbds: record
                .map(|r| r.disks.values().map(vbd).collect())
                .unwrap_or_default(),
            last_end: self.last_end,
            operation: self.operation,
        }
    }

    /// Tells the world if anything it can see has changed.
    pub(crate) fn publish(&self) {
        let state = Arc::new(self.describe());
        let changed = self.state.send_if_modified(|old| {
            let changed = **old != *state;
            *old = state.clone();
            changed
        });
        if changed {
            // Nobody subscribed is no error.
            let _ = self.shared.changes.send(state);
        }
    }

    fn bad_state(&self, wish: &str) -> Error {
        let context = format!("cannot {wish} vm {}: it is {:?}", self.vm, self.power);
        Error::new(ErrorKind::BadState, context)
    }

    fn uptime(&self) -> Duration {
        let started = self.record.as_ref().and_then(|record| record.started_at_ms);
        let passed = started.map(|started| self.shared.now_ms().saturating_sub(started));
        Duration::from_millis(passed.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0))
    }
}

impl Owner {
    async fn run(&mut self) {
        let mut events = self.machine.events.clone();
        loop {
            let restart_at = self.restart.map(|(at, _)| at);
            tokio::select! {
                biased;
                Ok(()) = events.changed() => {
                    let event = *events.borrow_and_update();
                    if let Some(event) = event {
                        self.look_after(event).await;
                    }
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                () = sleep_until(restart_at) => self.restart_now().await,
            }
            if self.retire() {
                return;
            }
        }
    }

    /// Leaves the map if there is nothing left to own. Nobody can put a command in the queue
    /// between the look and the leaving.
    fn retire(&self) -> bool {
        let machine = &self.machine;
        let mut owners = machine.shared.owners.lock();
        let idle = machine.record.is_none() && machine.domid.is_none() && self.commands.is_empty();
        if idle {
            owners.by_vm.remove(&machine.vm);
        }
        idle
    }

    async fn obey(&mut self, command: Command) {
        let Command {
            call,
            body,
            control,
        } = command;
        self.begin(&control);
        let result = match body {
            Body::Start(spec, start_as) => self.start(&call, &control, spec, start_as).await,
            Body::Shutdown(manner) => self.shutdown(&call, &control, manner).await,
            Body::Reboot(manner) => self.reboot(&call, &control, manner).await,
            Body::Pause => self.set_running(&call, &control, false).await,
            Body::Unpause => self.set_running(&call, &control, true).await,
            Body::Plug(vbd) => self.plug(&call, &control, vbd).await,
            Body::Unplug(vbd) => self.unplug(&call, &control, vbd).await,
            Body::Adopt(record, domain) => self.adopt(&call, &control, *record, domain).await,
        };
        self.end(&call, control, result);
    }

    fn begin(&mut self, control: &Control) {
        *self.current.lock() = Some(control.cancel.clone());
        self.machine.operation = Some(control.kind);
        self.machine.publish();
    }

    fn end(&mut self, call: &CallContext, control: Control, result: Result<(), Error>) {
        *self.current.lock() = None;
        self.machine.operation = None;
        self.machine.publish();
        let (vm, request_id) = (self.machine.vm, &call.request_id);
        match &result {
            Ok(()) => tracing::info!(%vm, %request_id, operation = ?control.kind, "done"),
            Err(error) => {
                tracing::warn!(%vm, %request_id, operation = ?control.kind, %error, "failed");
            }
        }
        control.finish(result);
    }

    async fn start(
        &mut self,
        call: &CallContext,
        control: &Control,
        spec: VmSpec,
        start_as: StartAs,
    ) -> Result<(), Error> {
        let machine = &mut self.machine;
        if machine.power != PowerState::Halted {
            return Err(machine.bad_state("start"));
        }
        check(&spec)?;
        if let Some(left) = &machine.record {
            let plan = Plan::stop(left, Phase::Stopping, Manner::Hard);
            machine.execute(call, control, plan).await?;
        }
        let record = Record::new(spec);
        let plan = Plan::start(&record, start_as);
        machine.record = Some(record);
        machine.last_end = None;
        machine.execute(call, control, plan).await
    }

    async fn shutdown(
        &mut self,
        call: &CallContext,
        control: &Control,
        manner: Manner,
    ) -> Result<(), Error> {
        let machine = &mut self.machine;
        let Some(record) = &machine.record else {
            return Ok(());
        };
        let manner = match (machine.power, manner) {
            (PowerState::Halted, _) => Manner::Hard,
            (PowerState::Paused, Manner::Clean(_)) => {
                return Err(machine.bad_state("cleanly shut down"));
            }
            (_, manner) => manner,
        };
        let plan = Plan::stop(record, Phase::Stopping, manner);
        machine.execute(call, control, plan).await
    }

    async fn reboot(
        &mut self,
        call: &CallContext,
        control: &Control,
        manner: Manner,
    ) -> Result<(), Error> {
        let machine = &mut self.machine;
        let allowed = match manner {
            Manner::Clean(_) => machine.power == PowerState::Running,
            Manner::Hard => machine.power != PowerState::Halted,
        };
        if !allowed {
            return Err(machine.bad_state("reboot"));
        }
        let plan = Plan::stop(machine.record()?, Phase::Rebooting, manner);
        machine.execute(call, control, plan).await?;
        self.start_again(call, control).await
    }

    /// The second half of a reboot, from the record. Until it is up the record says `rebooting`, so
    /// that a daemon that dies here leaves a VM that will be started.
    async fn start_again(&mut self, call: &CallContext, control: &Control) -> Result<(), Error> {
        let machine = &mut self.machine;
        let mut record = Record::new(machine.record()?.spec_now());
        record.phase = Phase::Rebooting;
        let plan = Plan::start(&record, StartAs::Running);
        machine.record = Some(record);
        machine.execute(call, control, plan).await
    }

    async fn set_running(
        &mut self,
        call: &CallContext,
        control: &Control,
        run: bool,
    ) -> Result<(), Error> {
        let machine = &mut self.machine;
        let (wanted, atom) = match run {
            true => (PowerState::Running, Atom::Unpause),
            false => (PowerState::Paused, Atom::Pause),
        };
        if machine.power == PowerState::Halted {
            return Err(machine.bad_state(atom.name()));
        }
        if machine.power == wanted {
            return Ok(());
        }
        machine.execute(call, control, Plan::one(atom)).await
    }

    async fn plug(
        &mut self,
        call: &CallContext,
        control: &Control,
        spec: VbdSpec,
    ) -> Result<(), Error> {
        let machine = &mut self.machine;
        if machine.power == PowerState::Halted {
            return Err(machine.bad_state("plug a disk into"));
        }
        let vm = machine.vm;
        let record = machine.record.as_mut().ok_or_else(|| halted(vm))?;
        let taken =
            |disk: &&DiskRecord| disk.spec.device == spec.device || disk.spec.vbd == spec.vbd;
        match record.disks.values().find(taken) {
            Some(disk) if disk.plugged && disk.spec == spec => return Ok(()),
            Some(disk) if disk.spec != spec => {
                let context = format!("vm {vm} has vbd {} at {}", disk.spec.vbd, disk.spec.device);
                return Err(Error::new(ErrorKind::DeviceInUse, context));
            }
            _ => {}
        }
        let vbd = spec.vbd;
        record.disks.insert(
            vbd,
            DiskRecord {
                spec,
                plugged: false,
            },
        );
        machine.execute(call, control, Plan::plug(vbd)).await
    }

    async fn unplug(
        &mut self,
        call: &CallContext,
        control: &Control,
        vbd: VbdUuid,
    ) -> Result<(), Error> {
        let machine = &mut self.machine;
        if machine.power == PowerState::Halted {
            return Err(machine.bad_state("unplug a disk from"));
        }
        if !machine.record()?.disks.contains_key(&vbd) {
            return Ok(());
        }
        machine.execute(call, control, Plan::unplug(vbd)).await
    }

    /// Does what was agreed for a guest that ended by itself, or whose domain vanished.
    async fn look_after(&mut self, event: Event) {
        if self.machine.domid != Some(event.domid) {
            return;
        }
        let (vm, domid) = (event.vm, event.domid);
        match event.kind {
            EventKind::Gone => {
                tracing::warn!(%vm, domid, "domain vanished");
                self.by_itself(Phase::Stopping).await;
            }
            EventKind::Shutdown(reason) => {
                tracing::info!(%vm, domid, ?reason, "guest ended");
                self.guest_ended(domid, reason).await;
            }
        }
    }

    pub(crate) async fn guest_ended(&mut self, domid: u32, reason: ShutdownReason) {
        let machine = &mut self.machine;
        machine.last_end = Some(reason);
        let Some(record) = &machine.record else {
            return;
        };
        let (action, uptime) = (record.spec.action(reason), machine.uptime());
        let config = &machine.shared.config;
        match (action, reason) {
            (GuestEndAction::Destroy, _) => self.by_itself(Phase::Stopping).await,
            (GuestEndAction::Preserve, _) => {
                machine.power = PowerState::Paused;
                machine.publish();
            }
            (GuestEndAction::Restart, ShutdownReason::Crash)
                if uptime < config.crash_loop_window =>
            {
                tracing::warn!(vm = %machine.vm, ?uptime, "crashed too soon to be restarted");
                self.by_itself(Phase::Stopping).await;
            }
            (GuestEndAction::Restart, ShutdownReason::Reboot)
                if uptime < config.reboot_interval_min =>
            {
                self.restart = Some((Instant::now() + config.reboot_delay, domid));
                machine.publish();
            }
            (GuestEndAction::Restart, _) => self.by_itself(Phase::Rebooting).await,
        }
    }

    async fn restart_now(&mut self) {
        let restart = self.restart.take();
        if restart.is_some_and(|(_, domid)| self.machine.domid == Some(domid)) {
            self.by_itself(Phase::Rebooting).await;
        }
    }

    /// Stops the VM, and starts it again for `Rebooting`, with nobody waiting for the result.
    async fn by_itself(&mut self, phase: Phase) {
        let call = CallContext::internal();
        let (_, control) = Operation::pair(self.machine.vm, OperationKind::GuestEnd);
        self.begin(&control);
        let result = self.bring_down(&call, &control, phase).await;
        self.end(&call, control, result);
    }

    pub(crate) async fn bring_down(
        &mut self,
        call: &CallContext,
        control: &Control,
        phase: Phase,
    ) -> Result<(), Error> {
        let plan = Plan::stop(self.machine.record()?, phase, Manner::Hard);
        self.machine.execute(call, control, plan).await?;
        match phase {
            Phase::Rebooting => self.start_again(call, control).await,
            Phase::Starting | Phase::Up | Phase::Stopping => Ok(()),
        }
    }
}

fn halted(vm: VmUuid) -> Error {
    Error::new(ErrorKind::BadState, format!("vm {vm} is halted"))
}

/// Checks a specification before anything is touched.
fn check(spec: &VmSpec) -> Result<(), Error> {
    let nowhere = NbdTarget {
        socket: "/".into(),
        export: String::new(),
    };
    let disks = spec
        .vbds
        .iter()
        .map(|vbd| vbd.disk_config(nowhere.clone()))
        .collect();
    let checked = spec.domain_config(disks).check();
    checked.map_err(|error| Error::hypervisor(spec.vm, "start", error))?;
    let mut vbds = std::collections::BTreeSet::new();
    match spec.vbds.iter().find(|vbd| !vbds.insert(vbd.vbd)) {
        Some(vbd) => {
            let context = format!("vm {} has vbd {} twice", spec.vm, vbd.vbd);
            Err(Error::new(ErrorKind::Invalid, context))
        }
        None => Ok(()),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
