//! Storage managers: the trait, its types and `export_plugin!`.

use crate::bindings::storage_plugin::exports::xylem::plugin as exports;
use crate::{Config, Error, Result};
use std::marker::PhantomData;

pub use crate::bindings::host_services::xylem::plugin::types::{
    Capacity, Container, Location, ProbeResult, SrStat,
};
pub use crate::{__export_storage_manager as export_plugin, PluginInfo, plugin_info};

/// A storage manager that keeps named byte containers. The core lays VHD trees over them; disks,
/// snapshots and clones are its business.
///
/// A value of the implementing type is one attached SR. It is made anew from the SR's handle for
/// every call, so it holds what the handle says and nothing else.
pub trait StorageManager: Sized {
    /// Says who the plugin is, from constants: see [`plugin_info!`](crate::plugin_info).
    fn query() -> PluginInfo;

    /// Looks at what a (possibly partial) configuration leads to, without side effects.
    ///
    /// # Errors
    ///
    /// `unsupported` unless implemented.
    fn probe(config: &Config) -> Result<Vec<ProbeResult>> {
        let _ = config;
        Err(Error::unsupported("this plugin cannot probe"))
    }

    /// Prepares storage for the SR of this uuid and returns the configuration to keep. The same SR
    /// again: success.
    ///
    /// # Errors
    ///
    /// `exists` if another SR lies there.
    fn create(sr: &str, config: &Config) -> Result<Config>;

    /// Makes the SR usable on this host and returns its handle: a text of at most 4096 bytes from
    /// which [`StorageManager::open`] finds the SR again.
    ///
    /// # Errors
    ///
    /// `not_found` if the SR is not there. Storage that is absent is an error, never an empty SR.
    fn attach(sr: &str, config: &Config) -> Result<String>;

    /// Undoes `attach`. Must not fail because the storage is away.
    ///
    /// # Errors
    ///
    /// What a later call would cure.
    fn detach(handle: &str) -> Result<()> {
        let _ = handle;
        Ok(())
    }

    /// Finds an attached SR by its handle; cheap.
    ///
    /// # Errors
    ///
    /// `not_found` or `io` if the SR is not there any more.
    fn open(handle: &str) -> Result<Self>;

    /// Wipes the SR's content and marks.
    ///
    /// # Errors
    ///
    /// `busy` if something is in use.
    fn destroy(&self) -> Result<()>;

    /// Says how much space there is and whether the storage is well.
    ///
    /// # Errors
    ///
    /// `io` only if nothing can be said.
    fn stat(&self) -> Result<SrStat>;

    /// Lists every container.
    ///
    /// # Errors
    ///
    /// `io`.
    fn containers(&self) -> Result<Vec<Container>>;

    /// Creates a container: empty where capacity grows, reading as zeros where it is reserved. One
    /// that is there: success, and its content stays.
    ///
    /// # Errors
    ///
    /// `exists` if it is there with less capacity (reserved) or is no container, `no_space`.
    fn container_create(&self, id: &str, capacity_bytes: u64) -> Result<Container>;

    /// Removes a container; one that is not there is a success.
    ///
    /// # Errors
    ///
    /// `busy` if it is in use.
    fn container_remove(&self, id: &str) -> Result<()>;

    /// Renames atomically; `source` gone and `target` there is a success.
    ///
    /// # Errors
    ///
    /// `exists` if both are there, `not_found` if neither is.
    fn container_rename(&self, source: &str, target: &str) -> Result<()>;

    /// Makes a container able to hold at least `capacity_bytes`; never shrinks.
    ///
    /// # Errors
    ///
    /// `not_found`, `no_space`.
    fn container_grow(&self, id: &str, capacity_bytes: u64) -> Result<Container>;

    /// Says where the bytes are.
    ///
    /// # Errors
    ///
    /// `not_found`.
    fn container_locate(&self, id: &str) -> Result<Location>;
}

/// Carries a [`StorageManager`] to the generated traits. For the macro only.
#[doc(hidden)]
pub struct Exported<T>(PhantomData<T>);

impl<T: StorageManager> exports::query::Guest for Exported<T> {
    fn query() -> PluginInfo {
        T::query()
    }
}

impl<T: StorageManager> exports::sr::Guest for Exported<T> {
    fn probe(config: Vec<(String, String)>) -> Result<Vec<ProbeResult>> {
        T::probe(&config.into())
    }

    fn create(sr: String, config: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
        T::create(&sr, &config.into()).map(Into::into)
    }

    fn attach(sr: String, config: Vec<(String, String)>) -> Result<String> {
        T::attach(&sr, &config.into())
    }

    fn detach(handle: String) -> Result<()> {
        T::detach(&handle)
    }

    fn destroy(handle: String) -> Result<()> {
        T::open(&handle)?.destroy()
    }

    fn stat(handle: String) -> Result<SrStat> {
        T::open(&handle)?.stat()
    }
}

impl<T: StorageManager> exports::containers::Guest for Exported<T> {
    fn list(handle: String) -> Result<Vec<Container>> {
        T::open(&handle)?.containers()
    }

    fn create(handle: String, id: String, capacity_bytes: u64) -> Result<Container> {
        T::open(&handle)?.container_create(&id, capacity_bytes)
    }

    fn remove(handle: String, id: String) -> Result<()> {
        T::open(&handle)?.container_remove(&id)
    }

    fn rename(handle: String, source: String, target: String) -> Result<()> {
        T::open(&handle)?.container_rename(&source, &target)
    }

    fn grow(handle: String, id: String, capacity_bytes: u64) -> Result<Container> {
        T::open(&handle)?.container_grow(&id, capacity_bytes)
    }

    fn locate(handle: String, id: String) -> Result<Location> {
        T::open(&handle)?.container_locate(&id)
    }
}

/// Makes a crate a storage plugin: `export_plugin!(MyType)`, once.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_storage_manager {
    ($manager:ty) => {
        $crate::__export_plugin!($manager, storage, storage_plugin, __export_storage_plugin);
    };
}
