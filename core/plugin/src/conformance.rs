//! What every storage plugin must do, as facts to run against one: the executable half of
//! `wit/v0/storage.wit`. For carriers, for the checked handle, for stand-ins in other tests.
//!
//! A [`Stand`] says which plugin, a configuration under which SRs can be made, and what to do
//! between two calls (nothing, or ending the process). Each fact makes an SR of its own.

use crate::{
    Capacity, Container, DeviceConfig, PluginError, PluginErrorKind as Kind, SrHandle, SrStat,
    StoragePlugin,
};
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use units::{ContainerId, MIB, SrUuid};

/// A future that a fact or a pause returns.
pub type Step<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the facts are run against.
pub struct Stand {
    /// The plugin.
    pub plugin: Arc<dyn StoragePlugin>,
    /// Makes a configuration for an SR that does not exist yet.
    pub config: Box<dyn Fn(SrUuid) -> DeviceConfig + Send + Sync>,
    /// Done between any two calls.
    pub between: Box<dyn Fn() -> Step<'static, ()> + Send + Sync>,
}

/// Why a fact does not hold.
type Broken = String;
type Fact = for<'a> fn(&'a Stand) -> Step<'a, Result<(), Broken>>;

/// Every fact with its name.
pub const STORAGE: &[(&str, Fact)] = &[
    ("query_names_a_driver_and_a_version", |stand| {
        Box::pin(query(stand))
    }),
    (
        "an_sr_is_created_once_and_again_with_the_same_result",
        |stand| Box::pin(create(stand)),
    ),
    ("attaching_what_was_not_created_is_an_error", |stand| {
        Box::pin(attach_missing(stand))
    }),
    ("attach_and_detach_may_come_twice", |stand| {
        Box::pin(attach_twice(stand))
    }),
    ("another_sr_cannot_take_the_same_place", |stand| {
        Box::pin(create_other(stand))
    }),
    ("a_new_sr_is_empty_and_has_space", |stand| {
        Box::pin(empty(stand))
    }),
    ("a_created_container_is_listed_and_located", |stand| {
        Box::pin(container(stand))
    }),
    ("creating_a_container_twice_makes_one", |stand| {
        Box::pin(container_twice(stand))
    }),
    ("removing_is_idempotent", |stand| Box::pin(remove(stand))),
    ("renaming_is_atomic_and_idempotent", |stand| {
        Box::pin(rename(stand))
    }),
    ("renaming_onto_another_container_is_refused", |stand| {
        Box::pin(rename_onto(stand))
    }),
    ("growing_never_shrinks_and_is_idempotent", |stand| {
        Box::pin(grow(stand))
    }),
    ("what_is_not_there_is_not_found", |stand| {
        Box::pin(not_found(stand))
    }),
    ("containers_outlive_detach_and_attach", |stand| {
        Box::pin(outlive(stand))
    }),
    ("a_destroyed_sr_can_be_created_anew_and_is_empty", |stand| {
        Box::pin(destroy(stand))
    }),
    ("many_calls_at_once_each_get_their_own_answer", |stand| {
        Box::pin(at_once(stand))
    }),
];

/// Runs every fact; returns those that do not hold, with the reason.
pub async fn storage(stand: &Stand) -> Vec<(&'static str, Broken)> {
    let mut broken = Vec::new();
    for (name, fact) in STORAGE {
        if let Err(reason) = fact(stand).await {
            broken.push((*name, reason));
        }
    }
    broken
}

/// An SR of one fact, attached.
struct Sr {
    uuid: SrUuid,
    config: DeviceConfig,
    handle: SrHandle,
}

fn said<T>(what: &str, result: Result<T, PluginError>) -> Result<T, Broken> {
    result.map_err(|error| format!("{what}: {error} ({:?})", error.kind))
}

fn refused<T>(what: &str, result: Result<T, PluginError>, kinds: &[Kind]) -> Result<(), Broken> {
    match result {
        Ok(_) => Err(format!("{what}: it worked")),
        Err(error) if kinds.contains(&error.kind) => Ok(()),
        Err(error) => Err(format!(
            "{what}: {error} ({:?}), not one of {kinds:?}",
            error.kind
        )),
    }
}

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(what()) }
}

fn id(text: &str) -> Result<ContainerId, Broken> {
    text.parse().map_err(|error| format!("{error}"))
}

impl Stand {
    async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, PluginError>>,
    ) -> Result<T, Broken> {
        (self.between)().await;
        said(what, call.await)
    }

    async fn no<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, PluginError>>,
        kinds: &[Kind],
    ) -> Result<(), Broken> {
        (self.between)().await;
        refused(what, call.await, kinds)
    }

    async fn sr(&self) -> Result<Sr, Broken> {
        let uuid = SrUuid::random();
        let config = (self.config)(uuid);
        let config = self
            .call("sr.create", self.plugin.sr_create(uuid, &config))
            .await?;
        let handle = self
            .call("sr.attach", self.plugin.sr_attach(uuid, &config))
            .await?;
        Ok(Sr {
            uuid,
            config,
            handle,
        })
    }

    async fn make(&self, sr: &Sr, name: &ContainerId, bytes: u64) -> Result<Container, Broken> {
        let call = self.plugin.container_create(&sr.handle, name, bytes);
        let made = self.call("containers.create", call).await?;
        require(made.id == *name && made.capacity_bytes >= bytes, || {
            format!("asked for {name} with {bytes} bytes, got {made:?}")
        })?;
        Ok(made)
    }

    async fn names(&self, sr: &Sr) -> Result<BTreeSet<String>, Broken> {
        let call = self.plugin.container_list(&sr.handle);
        let list = self.call("containers.list", call).await?;
        let names: BTreeSet<_> = list.iter().map(|one| one.id.as_str().to_owned()).collect();
        require(names.len() == list.len(), || {
            format!("a name is there twice: {list:?}")
        })?;
        Ok(names)
    }

    async fn holds(&self, sr: &Sr, expected: &[&str]) -> Result<(), Broken> {
        let names = self.names(sr).await?;
        let expected: BTreeSet<_> = expected.iter().map(|name| (*name).to_owned()).collect();
        require(names == expected, || {
            format!("it holds {names:?}, not {expected:?}")
        })
    }
}

async fn query(stand: &Stand) -> Result<(), Broken> {
    let info = stand.call("query", stand.plugin.query()).await?;
    require(!info.driver.is_empty() && !info.version.is_empty(), || {
        format!("{info:?}")
    })
}

async fn create(stand: &Stand) -> Result<(), Broken> {
    let uuid = SrUuid::random();
    let config = (stand.config)(uuid);
    let first = stand
        .call("sr.create", stand.plugin.sr_create(uuid, &config))
        .await?;
    let second = stand
        .call("sr.create again", stand.plugin.sr_create(uuid, &config))
        .await?;
    require(first == second, || format!("{first:?}, then {second:?}"))
}

async fn attach_missing(stand: &Stand) -> Result<(), Broken> {
    let uuid = SrUuid::random();
    let config = (stand.config)(uuid);
    let kinds = [Kind::NotFound, Kind::Invalid, Kind::Io];
    stand
        .no("sr.attach", stand.plugin.sr_attach(uuid, &config), &kinds)
        .await
}

async fn attach_twice(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let again = stand
        .call("sr.attach", stand.plugin.sr_attach(sr.uuid, &sr.config))
        .await?;
    require(again == sr.handle, || {
        format!("{:?}, then {again:?}", sr.handle)
    })?;
    for _ in 0..2 {
        stand
            .call("sr.detach", stand.plugin.sr_detach(&sr.handle))
            .await?;
    }
    Ok(())
}

async fn create_other(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let call = stand.plugin.sr_create(SrUuid::random(), &sr.config);
    stand
        .no("sr.create of another", call, &[Kind::Exists])
        .await?;
    stand.holds(&sr, &[]).await
}

async fn empty(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    stand.holds(&sr, &[]).await?;
    let stat = stand
        .call("sr.stat", stand.plugin.sr_stat(&sr.handle))
        .await?;
    let SrStat {
        total_bytes,
        free_bytes,
        health,
        ..
    } = &stat;
    require(
        *total_bytes > 0 && free_bytes <= total_bytes && health.is_ok(),
        || format!("{stat:?}"),
    )
}

async fn container(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let name = id("disk-1.vhd")?;
    stand.make(&sr, &name, 4 * MIB).await?;
    stand.holds(&sr, &["disk-1.vhd"]).await?;
    let call = stand.plugin.container_locate(&sr.handle, &name);
    stand.call("containers.locate", call).await.map(|_| ())
}

async fn container_twice(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let name = id("a")?;
    let first = stand.make(&sr, &name, 4 * MIB).await?;
    let second = stand.make(&sr, &name, 4 * MIB).await?;
    require(first == second, || format!("{first:?}, then {second:?}"))?;
    stand.holds(&sr, &["a"]).await
}

async fn remove(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let name = id("a")?;
    stand.make(&sr, &name, MIB).await?;
    for _ in 0..2 {
        let call = stand.plugin.container_remove(&sr.handle, &name);
        stand.call("containers.remove", call).await?;
    }
    stand.holds(&sr, &[]).await
}

async fn rename(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let (old, new) = (id("old")?, id("new")?);
    stand.make(&sr, &old, MIB).await?;
    for _ in 0..2 {
        let call = stand.plugin.container_rename(&sr.handle, &old, &new);
        stand.call("containers.rename", call).await?;
        stand.holds(&sr, &["new"]).await?;
    }
    Ok(())
}

async fn rename_onto(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let (a, b) = (id("a")?, id("b")?);
    stand.make(&sr, &a, MIB).await?;
    stand.make(&sr, &b, MIB).await?;
    let call = stand.plugin.container_rename(&sr.handle, &a, &b);
    stand.no("containers.rename", call, &[Kind::Exists]).await?;
    stand.holds(&sr, &["a", "b"]).await
}

async fn grow(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let name = id("a")?;
    let made = stand.make(&sr, &name, 4 * MIB).await?;
    for bytes in [8 * MIB, 8 * MIB, MIB] {
        let call = stand.plugin.container_grow(&sr.handle, &name, bytes);
        let grown = stand.call("containers.grow", call).await?;
        require(grown.id == name && grown.capacity_bytes >= bytes, || {
            format!("{grown:?}")
        })?;
    }
    let stat = stand
        .call("sr.stat", stand.plugin.sr_stat(&sr.handle))
        .await?;
    if stat.capacity == Capacity::Reserved {
        let call = stand.plugin.container_list(&sr.handle);
        let list = stand.call("containers.list", call).await?;
        let kept = list.iter().all(|one| one.capacity_bytes >= 8 * MIB);
        require(kept, || format!("{made:?} grew and is now {list:?}"))?;
    }
    Ok(())
}

async fn not_found(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    let (missing, other) = (id("missing")?, id("other")?);
    let kinds = [Kind::NotFound];
    let plugin = &stand.plugin;
    stand
        .no(
            "locate",
            plugin.container_locate(&sr.handle, &missing),
            &kinds,
        )
        .await?;
    stand
        .no(
            "grow",
            plugin.container_grow(&sr.handle, &missing, MIB),
            &kinds,
        )
        .await?;
    let call = plugin.container_rename(&sr.handle, &missing, &other);
    stand.no("rename", call, &kinds).await?;
    let nonsense = SrHandle("nonsense".to_owned());
    let kinds = [Kind::NotFound, Kind::Invalid, Kind::Io];
    stand
        .no("list of nothing", plugin.container_list(&nonsense), &kinds)
        .await
}

async fn outlive(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    stand.make(&sr, &id("a")?, MIB).await?;
    stand
        .call("sr.detach", stand.plugin.sr_detach(&sr.handle))
        .await?;
    let handle = stand
        .call("sr.attach", stand.plugin.sr_attach(sr.uuid, &sr.config))
        .await?;
    stand.holds(&Sr { handle, ..sr }, &["a"]).await
}

async fn destroy(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    stand.make(&sr, &id("a")?, MIB).await?;
    stand
        .call("sr.destroy", stand.plugin.sr_destroy(&sr.handle))
        .await?;
    let uuid = SrUuid::random();
    let config = stand
        .call("sr.create", stand.plugin.sr_create(uuid, &sr.config))
        .await?;
    let handle = stand
        .call("sr.attach", stand.plugin.sr_attach(uuid, &config))
        .await?;
    stand
        .holds(
            &Sr {
                uuid,
                config,
                handle,
            },
            &[],
        )
        .await
}

async fn at_once(stand: &Stand) -> Result<(), Broken> {
    let sr = stand.sr().await?;
    (stand.between)().await;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (plugin, handle) = (stand.plugin.clone(), sr.handle.clone());
        let name = id(&format!("c-{number}"))?;
        calls.spawn(async move {
            let made = plugin.container_create(&handle, &name, MIB).await;
            made.map(|container| (container.id, name))
        });
    }
    while let Some(done) = calls.join_next().await {
        let done = done.map_err(|error| error.to_string())?;
        let (got, asked) = said("containers.create", done)?;
        require(got == asked, || format!("asked for {asked}, got {got}"))?;
    }
    let names = stand.names(&sr).await?;
    require(names.len() == 16, || format!("{names:?}"))
}
