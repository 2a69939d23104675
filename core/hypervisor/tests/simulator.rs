//! The simulator passes the suite of all back ends, in memory and in a file, and keeps its script.

use hypervisor::conformance::{self, Harness};
use hypervisor::simulator::{Call, Fault, GuestBehaviour};
use hypervisor::{
    Access, Boot, DeviceName, DiskConfig, DomainConfig, DomainState, ErrorKind, EventKind,
    Hypervisor, NbdTarget, ShutdownReason, ShutdownRequest, Simulator,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use units::{MIB, VmUuid};

/// In memory the next daemon shares the world, in a file it reads it.
enum World {
    Shared(Simulator),
    File(PathBuf),
}

struct Sim {
    world: World,
    disks_made: AtomicU32,
}

impl Sim {
    fn new(world: World) -> Self {
        Self {
            world,
            disks_made: AtomicU32::new(0),
        }
    }
}

fn config() -> DomainConfig {
    DomainConfig {
        vm: VmUuid::random(),
        name: "a guest".to_owned(),
        memory_bytes: 64 * MIB,
        vcpus: 2,
        boot: Boot::Disk,
        disks: Vec::new(),
        serial_console: true,
    }
}

#[async_trait::async_trait]
impl Harness for Sim {
    async fn open(&self) -> Arc<dyn Hypervisor> {
        match &self.world {
            World::Shared(simulator) => Arc::new(simulator.clone()),
            World::File(file) => Arc::new(Simulator::open(file).expect("a readable world")),
        }
    }

    fn idle(&self) -> DomainConfig {
        config()
    }

    fn guest(&self) -> DomainConfig {
        DomainConfig {
            disks: vec![self.disk(DeviceName::from_position(0))],
            ..config()
        }
    }

    fn disk(&self, device: DeviceName) -> DiskConfig {
        let export = self.disks_made.fetch_add(1, Ordering::Relaxed).to_string();
        let target = NbdTarget {
            socket: "/nbd.sock".into(),
            export,
        };
        DiskConfig {
            device,
            access: Access::ReadWrite,
            target,
        }
    }

    async fn ready(&self, _: VmUuid) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    async fn kill(&self, vm: VmUuid) {
        if let World::Shared(simulator) = &self.world {
            simulator.vanish(vm);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_simulator_in_memory_is_a_back_end() {
    let harness = Sim::new(World::Shared(Simulator::new()));
    conformance::idle_domains(&harness).await;
    conformance::live_guests(&harness).await;
}

#[tokio::test(start_paused = true)]
async fn a_world_in_a_file_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("world.json");
    let (running, ended) = (config(), config());
    let old = Simulator::open(&file).unwrap();
    for config in [&running, &ended] {
        old.create(config).await.unwrap();
        old.unpause(config.vm).await.unwrap();
    }
    old.end_guest(ended.vm, ShutdownReason::Crash);
    let before = old.list().await.unwrap();
    drop(old);
    let harness = Sim::new(World::File(file.clone()));
    let new = harness.open().await;
    assert_eq!(new.list().await.unwrap(), before);
    assert_eq!(before.len(), 2);
    for domain in before {
        new.destroy(domain.vm).await.unwrap();
    }
    conformance::live_guests(&harness).await;
    std::fs::write(&file, "{\"domains\": 7}").unwrap();
    assert_eq!(Simulator::open(&file).unwrap_err().kind(), ErrorKind::Io);
}

#[tokio::test(start_paused = true)]
async fn faults_hit_the_next_call_of_their_kind_once() {
    let (simulator, config) = (Simulator::new(), config());
    simulator.inject(Call::Create, Fault::FailBefore);
    assert_eq!(
        simulator.create(&config).await.unwrap_err().kind(),
        ErrorKind::Failed
    );
    assert_eq!(simulator.domains(), []);
    simulator.inject(Call::Create, Fault::FailAfter);
    assert_eq!(
        simulator.create(&config).await.unwrap_err().kind(),
        ErrorKind::Failed
    );
    assert_eq!(simulator.domains().len(), 1);
    for (fault, state) in [
        (Fault::HangBefore, DomainState::Paused),
        (Fault::HangAfter, DomainState::Running),
    ] {
        simulator.inject(Call::Unpause, fault);
        let hour = Duration::from_secs(3600);
        assert!(
            tokio::time::timeout(hour, simulator.unpause(config.vm))
                .await
                .is_err()
        );
        assert_eq!(simulator.domains()[0].state, state, "{fault:?}");
    }
    simulator.unpause(config.vm).await.unwrap();
    assert_eq!(simulator.call_count(Call::Unpause), 3);
}

#[tokio::test(start_paused = true)]
async fn delays_and_guests_keep_exact_time() {
    let (simulator, config) = (Simulator::new(), config());
    simulator.set_delay(Call::Create, Duration::from_millis(340));
    let start = tokio::time::Instant::now();
    let created = simulator.create(&config).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(340));

    let slow = GuestBehaviour {
        obeys_after: Some(Duration::from_secs(7)),
        ..GuestBehaviour::default()
    };
    simulator.set_guest(config.vm, slow);
    let mut events = simulator.subscribe();
    simulator.unpause(config.vm).await.unwrap();
    let start = tokio::time::Instant::now();
    simulator
        .request_shutdown(config.vm, ShutdownRequest::Reboot)
        .await
        .unwrap();
    let event = events.recv().await.unwrap();
    assert_eq!(event.kind, EventKind::Shutdown(ShutdownReason::Reboot));
    assert_eq!(
        (event.domid, start.elapsed()),
        (created.domid, Duration::from_secs(7))
    );
    let stat = simulator.stat(config.vm).await.unwrap();
    assert_eq!(stat.cpu_time_ns, 7_000_000_000);
}

#[tokio::test(start_paused = true)]
async fn a_countdown_of_an_earlier_domain_does_not_end_the_present_one() {
    let (simulator, config) = (Simulator::new(), config());
    let crashing = GuestBehaviour {
        ends_after: Some((Duration::from_secs(5), ShutdownReason::Crash)),
        ..GuestBehaviour::default()
    };
    simulator.set_guest(config.vm, crashing);
    simulator.create(&config).await.unwrap();
    simulator.unpause(config.vm).await.unwrap();
    simulator.destroy(config.vm).await.unwrap();
    simulator.set_guest(config.vm, GuestBehaviour::default());
    simulator.create(&config).await.unwrap();
    simulator.unpause(config.vm).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(simulator.domains()[0].state, DomainState::Running);
}
