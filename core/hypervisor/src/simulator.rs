//! A hypervisor without a machine: domains are records, guests behave as told.
//!
//! It keeps the contract of [`Hypervisor`] exactly, so plans, faults and a thousand domains can be
//! tried anywhere. Clones share one world: dropping a daemon and handing a clone to the next one is
//! a daemon restart. With [`Simulator::open`] the world is kept in a file and outlives the process.
//! Time is tokio's, so a paused clock makes every delay exact. It moves no guest data.

mod script;
mod world;

pub use script::{Call, Fault, GuestBehaviour};

use crate::domain::{
    Acknowledgement, Console, Created, DiskConfig, Domain, DomainConfig, DomainStat, Event,
    EventKind, ShutdownReason, ShutdownRequest,
};
use crate::{DeviceName, Error, ErrorKind, Hypervisor};
use parking_lot::Mutex;
use script::Script;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use units::VmUuid;
use world::World;

/// Events a subscriber may be behind before it lags.
const EVENT_QUEUE: usize = 1024;

/// The simulator; a cheap handle of one shared world.
#[derive(Debug, Clone)]
pub struct Simulator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    world: Mutex<World>,
    script: Mutex<Script>,
    events: broadcast::Sender<Event>,
    file: Option<PathBuf>,
}

impl Default for Simulator {
    fn default() -> Self {
        Self::new()
    }
}

impl Simulator {
    /// Makes an empty world in memory.
    pub fn new() -> Self {
        Self::over(World::default(), None)
    }

    /// Opens the world kept in `file`, or an empty one if there is none. Every change is written
    /// before the call that made it returns. Scripts and started countdowns are not kept.
    ///
    /// # Errors
    /// `Io` when the file cannot be read or is not a simulator's.
    pub fn open(file: impl Into<PathBuf>) -> Result<Self, Error> {
        let file = file.into();
        let world = World::load(&file)?;
        Ok(Self::over(world, Some(file)))
    }

    fn over(world: World, file: Option<PathBuf>) -> Self {
        Self {
            shared: Arc::new(Shared {
                world: Mutex::new(world),
                script: Mutex::new(Script::default()),
                events: broadcast::Sender::new(EVENT_QUEUE),
                file,
            }),
        }
    }

    /// Makes every later call of a kind take this long.
    pub fn set_delay(&self, call: Call, delay: Duration) {
        self.shared.script.lock().set_delay(call, delay);
    }

    /// Makes the next call of a kind go wrong; several wait in line.
    pub fn inject(&self, call: Call, fault: Fault) {
        self.shared.script.lock().inject(call, fault);
    }

    /// Says how often a kind of call was made, failed ones included.
    pub fn call_count(&self, call: Call) -> u64 {
        self.shared.script.lock().count(call)
    }

    /// Says how a VM's guest behaves from now on, in this domain and those after it.
    pub fn set_guest(&self, vm: VmUuid, behaviour: GuestBehaviour) {
        self.shared.script.lock().set_guest(vm, behaviour);
    }

    /// Lets the guest end by itself now; nothing happens unless its domain runs.
    pub fn end_guest(&self, vm: VmUuid, reason: ShutdownReason) {
        let domid = self.shared.world.lock().domid(vm);
        if let Some(domid) = domid {
            self.end_domain(vm, domid, reason);
        }
    }

    /// Destroys a domain behind the toolstack's back.
    pub fn vanish(&self, vm: VmUuid) {
        let removed = {
            let mut world = self.shared.world.lock();
            let removed = world.remove(vm);
            self.keep(&world);
            removed
        };
        if let Some(domid) = removed {
            self.announce(Event {
                vm,
                domid,
                kind: EventKind::Gone,
            });
        }
    }

    /// Lists the domains as [`Hypervisor::list`] does, outside the script: for looking on.
    pub fn domains(&self) -> Vec<Domain> {
        self.shared.world.lock().list()
    }

    fn end_domain(&self, vm: VmUuid, domid: u32, reason: ShutdownReason) {
        let ended = {
            let mut world = self.shared.world.lock();
            let ended = world.end(vm, domid, reason);
            self.keep(&world);
            ended
        };
        if ended {
            self.announce(Event {
                vm,
                domid,
                kind: EventKind::Shutdown(reason),
            });
        }
    }

    /// Guests do not wait for the file; the next call that changes something writes it again.
    fn keep(&self, world: &World) {
        if let Some(file) = &self.shared.file
            && let Err(error) = world.save(file)
        {
            tracing::warn!(%error, "the simulator's world was not kept");
        }
    }

    /// Nobody listening is no error: whoever comes later lists.
    fn announce(&self, event: Event) {
        let _ = self.shared.events.send(event);
    }

    fn end_later(&self, vm: VmUuid, domid: u32, delay: Duration, reason: ShutdownReason) {
        let simulator = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            simulator.end_domain(vm, domid, reason);
        });
    }

    /// Runs one call by the script: its delay, its fault, and the change in between.
    async fn run<T>(
        &self,
        call: Call,
        change: impl FnOnce(&mut World) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (delay, fault) = self.shared.script.lock().enter(call);
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        match fault {
            Some(Fault::FailBefore) => return Err(injected(call)),
            Some(Fault::HangBefore) => std::future::pending::<()>().await,
            Some(Fault::FailAfter | Fault::HangAfter) | None => {}
        }
        let result = {
            let mut world = self.shared.world.lock();
            let result = change(&mut world)?;
            if let Some(file) = &self.shared.file {
                world.save(file)?;
            }
            result
        };
        match fault {
            Some(Fault::FailAfter) => Err(injected(call)),
            Some(Fault::HangAfter) => std::future::pending().await,
            Some(Fault::FailBefore | Fault::HangBefore) | None => Ok(result),
        }
    }
}

fn injected(call: Call) -> Error {
    Error::new(ErrorKind::Failed, format!("injected failure of {call:?}"))
}

#[async_trait::async_trait]
impl Hypervisor for Simulator {
    fn name(&self) -> &'static str {
        "simulator"
    }

    async fn create(&self, config: &DomainConfig) -> Result<Created, Error> {
        config.check()?;
        self.run(Call::Create, |world| world.create(config)).await
    }

    async fn destroy(&self, vm: VmUuid) -> Result<(), Error> {
        self.run(Call::Destroy, |world| {
            world.remove(vm);
            Ok(())
        })
        .await
    }

    async fn pause(&self, vm: VmUuid) -> Result<(), Error> {
        self.run(Call::Pause, |world| world.pause(vm)).await
    }

    async fn unpause(&self, vm: VmUuid) -> Result<(), Error> {
        let domid = self.run(Call::Unpause, |world| world.unpause(vm)).await?;
        let guest = self.shared.script.lock().guest(vm);
        if let Some((delay, reason)) = guest.ends_after {
            self.end_later(vm, domid, delay, reason);
        }
        Ok(())
    }

    async fn request_shutdown(
        &self,
        vm: VmUuid,
        request: ShutdownRequest,
    ) -> Result<Acknowledgement, Error> {
        let reason = match request {
            ShutdownRequest::Poweroff => ShutdownReason::Poweroff,
            ShutdownRequest::Reboot => ShutdownReason::Reboot,
        };
        let asked = self
            .run(Call::RequestShutdown, |world| world.ask(vm))
            .await?;
        let guest = self.shared.script.lock().guest(vm);
        let Some(domid) = asked else {
            return Ok(Acknowledgement::Given);
        };
        if !guest.acknowledges {
            std::future::pending::<()>().await;
        }
        match guest.obeys_after {
            Some(Duration::ZERO) => self.end_domain(vm, domid, reason),
            Some(delay) => self.end_later(vm, domid, delay, reason),
            None => {}
        }
        Ok(Acknowledgement::Given)
    }

    async fn plug_disk(&self, vm: VmUuid, disk: &DiskConfig) -> Result<(), Error> {
        self.run(Call::PlugDisk, |world| world.plug(vm, disk)).await
    }

    async fn unplug_disk(&self, vm: VmUuid, device: DeviceName) -> Result<(), Error> {
        let releases = self.shared.script.lock().guest(vm).releases_disks;
        self.run(Call::UnplugDisk, |world| world.unplug(vm, device, releases))
            .await
    }

    async fn list(&self) -> Result<Vec<Domain>, Error> {
        self.run(Call::List, |world| Ok(world.list())).await
    }

    async fn stat(&self, vm: VmUuid) -> Result<DomainStat, Error> {
        self.run(Call::Stat, |world| world.stat(vm)).await
    }

    async fn console(&self, vm: VmUuid) -> Result<Option<Console>, Error> {
        self.run(Call::Console, |world| world.stat(vm).map(|_| None))
            .await
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }
}
