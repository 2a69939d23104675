//! The back end: all domains of one run directory.

use crate::accelerator::Accelerator;
use crate::arguments;
use crate::instance::Instance;
use crate::process::{self, Launch};
use crate::run_dir::{RunDir, Stored};
use futures_util::future::join_all;
use hypervisor::{
    Acknowledgement, Console, ConsoleEndpoint, Created, DeviceName, DiskConfig, Domain,
    DomainConfig, DomainStat, Error, ErrorKind, Event, Hypervisor, Outcome, ShutdownRequest,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::{OnceCell, broadcast};
use units::{MIB, VmUuid};

/// Events a subscriber may be behind before it lags.
const EVENT_QUEUE: usize = 1024;
/// How often files that guests make grow are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(10);
/// How long to wait for a killed process before killing it again.
const KILL_AGAIN: Duration = Duration::from_millis(200);

/// Where things are and how long they may take.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The emulator.
    pub binary: PathBuf,
    /// The directory that is this back end's alone; at most 57 bytes long, for the sockets' sake.
    pub run_dir: PathBuf,
    /// How guest code is executed.
    pub accelerator: Accelerator,
    /// Whether QEMU gives up system calls that it should not need.
    pub sandbox: bool,
    /// How long QEMU may take to come up.
    pub start_deadline: Duration,
    /// How long a guest may take to let a disk go.
    pub unplug_deadline: Duration,
    /// How long QEMU may take to end by itself before it is killed.
    pub quit_deadline: Duration,
    /// How large the console's record may grow before it is cut; four times that is the most while
    /// no daemon runs.
    pub log_bytes_max: u64,
}

impl QemuConfig {
    /// The defaults, for a run directory.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: "qemu-system-x86_64".into(),
            run_dir: run_dir.into(),
            accelerator: Accelerator::Auto,
            sandbox: true,
            start_deadline: Duration::from_secs(30),
            unplug_deadline: Duration::from_secs(10),
            quit_deadline: Duration::from_secs(5),
            log_bytes_max: 8 * MIB,
        }
    }
}

/// QEMU as a hypervisor.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
    run_dir: RunDir,
    accelerator: OnceCell<Accelerator>,
    domains: Arc<Mutex<BTreeMap<VmUuid, Arc<Instance>>>>,
    numbers: Mutex<()>,
    events: broadcast::Sender<Event>,
}

impl Qemu {
    /// Opens a run directory, makes it if need be, and connects to the domains that live in it.
    ///
    /// A process that does not answer is kept in the list, so that it can be destroyed.
    ///
    /// # Errors
    /// `Invalid` for a run directory whose path is too long; `Io`, also when another daemon has it.
    pub async fn open(config: QemuConfig) -> Result<Self, Error> {
        let run_dir = RunDir::open(&config.run_dir).await?;
        let qemu = Self {
            accelerator: OnceCell::new(),
            domains: Arc::default(),
            numbers: Mutex::default(),
            events: broadcast::Sender::new(EVENT_QUEUE),
            run_dir,
            config,
        };
        for vm in qemu.run_dir.domains()? {
            if let Err(error) = qemu.find(vm).await {
                tracing::warn!(%vm, %error, "a domain was not found in order");
            }
        }
        tokio::spawn(keep_house(
            Arc::downgrade(&qemu.domains),
            qemu.config.log_bytes_max,
        ));
        Ok(qemu)
    }

    /// Takes over one directory. What a dead process left is kept: a later `create` or `destroy`
    /// clears it.
    async fn find(&self, vm: VmUuid) -> Result<(), Error> {
        let dir = self.run_dir.domain(vm);
        if !process::is_alive(&dir)? {
            return Ok(());
        }
        let instance = Instance::new(vm, dir.clone(), Stored::load(&dir)?, self.events.clone());
        self.domains.lock().insert(vm, instance.clone());
        let connected = self.connect(&instance, None).await;
        if connected.is_err() && !process::is_alive(&dir)? {
            self.domains.lock().remove(&vm);
            return Ok(());
        }
        connected
    }

    fn get(&self, vm: VmUuid) -> Result<Arc<Instance>, Error> {
        let instance = self
            .domains
            .lock()
            .get(&vm)
            .filter(|found| !found.is_leaving())
            .cloned();
        instance.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("vm {vm} has no domain")))
    }

    /// Waits until QEMU listens and answers, or is gone.
    async fn connect(
        &self,
        instance: &Arc<Instance>,
        mut child: Option<&mut Child>,
    ) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + self.config.start_deadline;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let error = match instance.connect(left).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let exited = match &mut child {
                Some(child) => child.try_wait().is_ok_and(|status| status.is_some()),
                None => !process::is_alive(&instance.dir)?,
            };
            if exited {
                let words = process::last_words(&instance.dir);
                let context = format!("qemu of vm {} ended: {words}", instance.vm);
                return Err(Error::new(ErrorKind::Failed, context));
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(process::POLL).await;
        }
    }

    async fn launch(&self, config: &DomainConfig) -> Result<Arc<Instance>, Error> {
        let vm = config.vm;
        if process::is_alive(&self.run_dir.domain(vm))? {
            let context = format!("vm {vm} has a process that was not taken over");
            return Err(Error::new(ErrorKind::Exists, context));
        }
        let decide = || self.config.accelerator.decide(&self.config.binary);
        let accelerator = *self.accelerator.get_or_init(decide).await;
        let dir = self.run_dir.make_domain(vm)?;
        let arguments = arguments::command_line(config, &dir, accelerator, self.config.sandbox)?;
        let domid = {
            let _turn = self.numbers.lock();
            self.run_dir.next_domid()?
        };
        let disks = config
            .disks
            .iter()
            .map(|disk| (disk.device, disk.clone()))
            .collect();
        let stored = Stored {
            domid,
            config: config.clone(),
            disks,
        };
        stored.save(&dir)?;
        let mut child = process::launch(&Launch {
            binary: &self.config.binary,
            arguments: &arguments,
            dir: &dir,
            file_bytes_max: self.config.log_bytes_max.saturating_mul(4),
        })?;
        let instance = Instance::new(vm, dir, stored, self.events.clone());
        let connected = self.connect(&instance, Some(&mut child)).await;
        process::reap(child);
        connected.map(|()| instance)
    }

    async fn end(&self, vm: VmUuid, dir: &Path) -> Result<(), Error> {
        let limit = self.config.quit_deadline;
        let instance = self.domains.lock().get(&vm).cloned();
        if let Some(instance) = instance {
            instance.quit(limit).await;
            if process::ended_within(dir, limit).await? {
                return Ok(());
            }
            tracing::warn!(%vm, "qemu does not end by itself");
        }
        // One that has just been started may not have written its pid yet.
        let deadline = tokio::time::Instant::now() + limit;
        while tokio::time::Instant::now() < deadline {
            process::kill(dir)?;
            if process::ended_within(dir, KILL_AGAIN).await? {
                return Ok(());
            }
        }
        Err(Error::new(
            ErrorKind::Timeout,
            format!("qemu of vm {vm} cannot be ended"),
        ))
    }
}

/// Ends with the back end.
async fn keep_house(domains: Weak<Mutex<BTreeMap<VmUuid, Arc<Instance>>>>, log_bytes_max: u64) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let Some(domains) = domains.upgrade() else {
            return;
        };
        let instances: Vec<Arc<Instance>> = domains.lock().values().cloned().collect();
        for instance in instances {
            instance.cut_files(log_bytes_max);
        }
    }
}

#[async_trait::async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    async fn create(&self, config: &DomainConfig) -> Result<Created, Error> {
        config.check()?;
        if let Ok(instance) = self.get(config.vm) {
            let stored = instance.stored.lock();
            return if stored.config == *config {
                Ok(Created {
                    domid: stored.domid,
                    outcome: Outcome::AlreadyThere,
                })
            } else {
                let context = format!("vm {} has domain {} already", config.vm, stored.domid);
                Err(Error::new(ErrorKind::Exists, context))
            };
        }
        match self.launch(config).await {
            Ok(instance) => {
                let domid = instance.stored.lock().domid;
                self.domains.lock().insert(config.vm, instance);
                Ok(Created {
                    domid,
                    outcome: Outcome::Created,
                })
            }
            Err(error) => {
                // What is left for `destroy` must not be running meanwhile; a process that was there
                // before is not ours to end without being told.
                let dir = self.run_dir.domain(config.vm);
                if error.kind() != ErrorKind::Exists
                    && let Err(error) = self.end(config.vm, &dir).await
                {
                    tracing::warn!(vm = %config.vm, %error, "after a failed start");
                }
                Err(error)
            }
        }
    }

    async fn destroy(&self, vm: VmUuid) -> Result<(), Error> {
        let dir = self.run_dir.domain(vm);
        self.end(vm, &dir).await?;
        self.domains.lock().remove(&vm);
        self.run_dir.remove_domain(vm)
    }

    async fn pause(&self, vm: VmUuid) -> Result<(), Error> {
        self.get(vm)?.set_running(false).await
    }

    async fn unpause(&self, vm: VmUuid) -> Result<(), Error> {
        self.get(vm)?.set_running(true).await
    }

    async fn request_shutdown(
        &self,
        vm: VmUuid,
        request: ShutdownRequest,
    ) -> Result<Acknowledgement, Error> {
        self.get(vm)?.request_shutdown(request).await?;
        Ok(Acknowledgement::Unknowable)
    }

    async fn plug_disk(&self, vm: VmUuid, disk: &DiskConfig) -> Result<(), Error> {
        self.get(vm)?.plug(disk).await
    }

    async fn unplug_disk(&self, vm: VmUuid, device: DeviceName) -> Result<(), Error> {
        self.get(vm)?
            .unplug(device, self.config.unplug_deadline)
            .await
    }

    async fn list(&self) -> Result<Vec<Domain>, Error> {
        let mut instances: Vec<Arc<Instance>> = self.domains.lock().values().cloned().collect();
        instances.retain(|instance| !instance.is_leaving());
        let mut list = join_all(instances.iter().map(|instance| instance.describe())).await;
        let dead = |vm: &VmUuid| process::is_alive(&self.run_dir.domain(*vm)).is_ok_and(|yes| !yes);
        list.retain(|domain| !dead(&domain.vm));
        Ok(list)
    }

    async fn stat(&self, vm: VmUuid) -> Result<DomainStat, Error> {
        self.get(vm)?.stat().await
    }

    async fn console(&self, vm: VmUuid) -> Result<Option<Console>, Error> {
        let instance = self.get(vm)?;
        let console = Console {
            endpoint: ConsoleEndpoint::Socket(instance.dir.join("console.sock")),
            log: Some(instance.dir.join("console.log")),
        };
        let has_one = instance.stored.lock().config.serial_console;
        Ok(has_one.then_some(console))
    }

    fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
