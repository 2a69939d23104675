//! What every back end must do, as facts to run against it.
//!
//! A back end's tests implement [`Harness`] and call [`idle_domains`] and [`live_guests`]. A fact
//! that does not hold panics with what was seen.

use crate::{
    Boot, DeviceName, DiskConfig, Domain, DomainConfig, DomainState, ErrorKind, EventKind,
    Hypervisor, Outcome, ShutdownReason, ShutdownRequest,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use units::VmUuid;

/// How long a back end may take for something that is not the guest's work.
const PROMPT: Duration = Duration::from_secs(20);

/// What a back end's tests provide.
#[async_trait::async_trait]
pub trait Harness: Send + Sync {
    /// The back end as a daemon would open it now. Called again it is what the next daemon opens:
    /// the same domains, nothing else in common.
    async fn open(&self) -> Arc<dyn Hypervisor>;

    /// A VM with no disk that needs no guest. Each call another VM.
    fn idle(&self) -> DomainConfig;

    /// A VM with one disk at `xvda` and a guest that obeys the power button and lets disks go.
    fn guest(&self) -> DomainConfig;

    /// A disk that is served and that no other device uses.
    fn disk(&self, device: DeviceName) -> DiskConfig;

    /// Waits until a running VM's guest can be asked for something.
    async fn ready(&self, vm: VmUuid);

    /// Takes a domain away behind the back end's back.
    async fn kill(&self, vm: VmUuid);
}

/// Runs the facts that need no guest.
pub async fn idle_domains(harness: &dyn Harness) {
    a_new_domain_is_paused_and_listed(harness).await;
    creating_twice_is_creating_once(harness).await;
    a_destroyed_domain_is_gone_and_may_be_destroyed_again(harness).await;
    pause_and_unpause_may_be_repeated(harness).await;
    a_disk_may_be_plugged_once_per_device(harness).await;
    what_cannot_be_is_refused(harness).await;
    calls_for_no_domain_say_so(harness).await;
    another_daemon_finds_and_rules_the_domains(harness).await;
    a_domain_taken_away_is_reported(harness).await;
}

/// Runs the facts that need a guest.
pub async fn live_guests(harness: &dyn Harness) {
    a_guest_gets_and_lets_go_disks_and_powers_off_when_asked(harness).await;
    a_guest_reboots_when_asked_and_the_reason_outlives_the_daemon(harness).await;
}

async fn find(hypervisor: &dyn Hypervisor, vm: VmUuid) -> Option<Domain> {
    hypervisor
        .list()
        .await
        .expect("list")
        .into_iter()
        .find(|domain| domain.vm == vm)
}

async fn state(hypervisor: &dyn Hypervisor, vm: VmUuid) -> DomainState {
    find(hypervisor, vm).await.expect("a listed domain").state
}

async fn destroy(hypervisor: &dyn Hypervisor, vm: VmUuid) {
    hypervisor.destroy(vm).await.expect("destroy");
    assert_eq!(find(hypervisor, vm).await, None);
}

async fn await_event(
    events: &mut broadcast::Receiver<crate::Event>,
    vm: VmUuid,
    domid: u32,
    limit: Duration,
) -> EventKind {
    let next = async {
        loop {
            let event = events.recv().await.expect("an open event stream");
            if event.vm == vm {
                assert_eq!(event.domid, domid, "an event of another domain");
                return event.kind;
            }
        }
    };
    tokio::time::timeout(limit, next)
        .await
        .expect("an event in time")
}

async fn a_new_domain_is_paused_and_listed(harness: &dyn Harness) {
    let (hypervisor, config) = (harness.open().await, harness.guest());
    let created = hypervisor.create(&config).await.expect("create");
    assert_eq!(created.outcome, Outcome::Created);
    assert!(created.domid >= 1);
    let domain = find(&*hypervisor, config.vm)
        .await
        .expect("a listed domain");
    assert_eq!(
        (domain.domid, domain.state),
        (created.domid, DomainState::Paused)
    );
    assert_eq!(
        domain.disks,
        config.disks.iter().map(|disk| disk.device).collect()
    );
    let stat = hypervisor.stat(config.vm).await.expect("stat");
    assert_eq!(
        (stat.domid, stat.state),
        (created.domid, DomainState::Paused)
    );
    assert_eq!(
        (stat.memory_bytes, stat.vcpus),
        (config.memory_bytes, config.vcpus)
    );
    destroy(&*hypervisor, config.vm).await;
}

async fn creating_twice_is_creating_once(harness: &dyn Harness) {
    let (hypervisor, config) = (harness.open().await, harness.idle());
    let first = hypervisor.create(&config).await.expect("create");
    let again = hypervisor.create(&config).await.expect("create again");
    assert_eq!(
        (again.domid, again.outcome),
        (first.domid, Outcome::AlreadyThere)
    );
    let other = DomainConfig {
        name: "another".to_owned(),
        ..config.clone()
    };
    let refused = hypervisor
        .create(&other)
        .await
        .expect_err("another configuration");
    assert_eq!(refused.kind(), ErrorKind::Exists);
    destroy(&*hypervisor, config.vm).await;
}

async fn a_destroyed_domain_is_gone_and_may_be_destroyed_again(harness: &dyn Harness) {
    let (hypervisor, config) = (harness.open().await, harness.idle());
    let bystander = harness.idle();
    hypervisor.create(&bystander).await.expect("create");
    let first = hypervisor.create(&config).await.expect("create");
    destroy(&*hypervisor, config.vm).await;
    destroy(&*hypervisor, config.vm).await;
    let second = hypervisor.create(&config).await.expect("create again");
    assert_eq!(second.outcome, Outcome::Created);
    assert_ne!(first.domid, second.domid, "a number was given twice");
    destroy(&*hypervisor, config.vm).await;
    assert!(
        find(&*hypervisor, bystander.vm).await.is_some(),
        "the other VM is untouched"
    );
    destroy(&*hypervisor, bystander.vm).await;
}

async fn pause_and_unpause_may_be_repeated(harness: &dyn Harness) {
    let (hypervisor, config) = (harness.open().await, harness.idle());
    hypervisor.create(&config).await.expect("create");
    for _ in 0..2 {
        hypervisor.unpause(config.vm).await.expect("unpause");
        assert_eq!(state(&*hypervisor, config.vm).await, DomainState::Running);
    }
    for _ in 0..2 {
        hypervisor.pause(config.vm).await.expect("pause");
        assert_eq!(state(&*hypervisor, config.vm).await, DomainState::Paused);
    }
    destroy(&*hypervisor, config.vm).await;
}

async fn a_disk_may_be_plugged_once_per_device(harness: &dyn Harness) {
    let (hypervisor, config) = (harness.open().await, harness.idle());
    hypervisor.create(&config).await.expect("create");
    let device = DeviceName::from_position(2);
    let (disk, other) = (harness.disk(device), harness.disk(device));
    for _ in 0..2 {
        hypervisor.plug_disk(config.vm, &disk).await.expect("plug");
        let domain = find(&*hypervisor, config.vm)
            .await
            .expect("a listed domain");
        assert_eq!(domain.disks, [device].into());
    }
    let refused = hypervisor
        .plug_disk(config.vm, &other)
        .await
        .expect_err("a taken device");
    assert_eq!(refused.kind(), ErrorKind::Exists);
    hypervisor
        .unplug_disk(config.vm, DeviceName::from_position(3))
        .await
        .expect("no disk there");
    destroy(&*hypervisor, config.vm).await;
}

async fn what_cannot_be_is_refused(harness: &dyn Harness) {
    let hypervisor = harness.open().await;
    let base = harness.guest();
    let kernel = Boot::Kernel {
        kernel: "/k".into(),
        ramdisk: None,
        cmdline: "a\nb".to_owned(),
    };
    let twice = [base.disks.clone(), base.disks.clone()].concat();
    let wrong = [
        DomainConfig {
            memory_bytes: 0,
            ..base.clone()
        },
        DomainConfig {
            memory_bytes: base.memory_bytes + 1,
            ..base.clone()
        },
        DomainConfig {
            vcpus: 0,
            ..base.clone()
        },
        DomainConfig {
            name: "a\0b".to_owned(),
            ..base.clone()
        },
        DomainConfig {
            boot: kernel,
            ..base.clone()
        },
        DomainConfig {
            disks: twice,
            ..base.clone()
        },
    ];
    for config in wrong {
        let refused = hypervisor
            .create(&config)
            .await
            .expect_err("an impossible domain");
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{config:?}");
    }
    assert_eq!(find(&*hypervisor, base.vm).await, None);
}

async fn calls_for_no_domain_say_so(harness: &dyn Harness) {
    let (hypervisor, vm) = (harness.open().await, VmUuid::random());
    let device = DeviceName::from_position(0);
    let poweroff = ShutdownRequest::Poweroff;
    let results = [
        hypervisor.pause(vm).await,
        hypervisor.unpause(vm).await,
        hypervisor.request_shutdown(vm, poweroff).await.map(|_| ()),
        hypervisor.plug_disk(vm, &harness.disk(device)).await,
        hypervisor.unplug_disk(vm, device).await,
        hypervisor.stat(vm).await.map(|_| ()),
        hypervisor.console(vm).await.map(|_| ()),
    ];
    for result in results {
        assert_eq!(
            result.expect_err("there is no domain").kind(),
            ErrorKind::NotFound
        );
    }
    let config = harness.idle();
    hypervisor.create(&config).await.expect("create");
    let paused = hypervisor.request_shutdown(config.vm, poweroff).await;
    assert_eq!(
        paused.expect_err("a paused guest").kind(),
        ErrorKind::BadState
    );
    destroy(&*hypervisor, config.vm).await;
}

async fn another_daemon_finds_and_rules_the_domains(harness: &dyn Harness) {
    let (old, config) = (harness.open().await, harness.guest());
    let created = old.create(&config).await.expect("create");
    let before = find(&*old, config.vm).await;
    drop(old);
    let new = harness.open().await;
    assert_eq!(find(&*new, config.vm).await, before);
    let again = new.create(&config).await.expect("create again");
    assert_eq!(
        (again.domid, again.outcome),
        (created.domid, Outcome::AlreadyThere)
    );
    new.unpause(config.vm).await.expect("unpause");
    assert_eq!(state(&*new, config.vm).await, DomainState::Running);
    destroy(&*new, config.vm).await;
    let fresh = new.create(&harness.idle()).await.expect("create another");
    assert_ne!(fresh.domid, created.domid, "a number was given twice");
    for domain in new.list().await.expect("list") {
        destroy(&*new, domain.vm).await;
    }
}

async fn a_domain_taken_away_is_reported(harness: &dyn Harness) {
    let (hypervisor, config) = (harness.open().await, harness.idle());
    let mut events = hypervisor.subscribe();
    let created = hypervisor.create(&config).await.expect("create");
    harness.kill(config.vm).await;
    let event = await_event(&mut events, config.vm, created.domid, PROMPT).await;
    assert_eq!(event, EventKind::Gone);
    assert_eq!(find(&*hypervisor, config.vm).await, None);
    let gone = hypervisor
        .pause(config.vm)
        .await
        .expect_err("there is no domain");
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    destroy(&*hypervisor, config.vm).await;
}

async fn a_guest_gets_and_lets_go_disks_and_powers_off_when_asked(harness: &dyn Harness) {
    let (hypervisor, config) = (harness.open().await, harness.guest());
    let created = hypervisor.create(&config).await.expect("create");
    hypervisor.unpause(config.vm).await.expect("unpause");
    harness.ready(config.vm).await;
    assert!(hypervisor.stat(config.vm).await.expect("stat").cpu_time_ns > 0);

    let device = DeviceName::from_position(1);
    hypervisor
        .plug_disk(config.vm, &harness.disk(device))
        .await
        .expect("plug");
    for _ in 0..2 {
        hypervisor
            .unplug_disk(config.vm, device)
            .await
            .expect("unplug");
    }
    let domain = find(&*hypervisor, config.vm)
        .await
        .expect("a listed domain");
    assert_eq!(
        domain.disks,
        config.disks.iter().map(|disk| disk.device).collect()
    );
    hypervisor
        .plug_disk(config.vm, &harness.disk(device))
        .await
        .expect("plug again");

    let mut events = hypervisor.subscribe();
    let poweroff = ShutdownRequest::Poweroff;
    hypervisor
        .request_shutdown(config.vm, poweroff)
        .await
        .expect("a wish");
    let event = await_event(&mut events, config.vm, created.domid, PROMPT).await;
    assert_eq!(event, EventKind::Shutdown(ShutdownReason::Poweroff));
    let ended = DomainState::Shutdown(ShutdownReason::Poweroff);
    assert_eq!(state(&*hypervisor, config.vm).await, ended);
    for wrong in [
        hypervisor.pause(config.vm).await,
        hypervisor.unpause(config.vm).await,
    ] {
        assert_eq!(
            wrong.expect_err("the guest has ended").kind(),
            ErrorKind::BadState
        );
    }
    hypervisor
        .request_shutdown(config.vm, poweroff)
        .await
        .expect("it has ended already");
    destroy(&*hypervisor, config.vm).await;
}

async fn a_guest_reboots_when_asked_and_the_reason_outlives_the_daemon(harness: &dyn Harness) {
    let (old, config) = (harness.open().await, harness.guest());
    old.create(&config).await.expect("create");
    old.unpause(config.vm).await.expect("unpause");
    harness.ready(config.vm).await;
    old.request_shutdown(config.vm, ShutdownRequest::Reboot)
        .await
        .expect("a wish");
    drop(old);
    let ended = DomainState::Shutdown(ShutdownReason::Reboot);
    let seen = async {
        loop {
            let new = harness.open().await;
            if state(&*new, config.vm).await == ended {
                return new;
            }
            drop(new);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let new = tokio::time::timeout(PROMPT, seen)
        .await
        .expect("the reason in time");
    destroy(&*new, config.vm).await;
}
