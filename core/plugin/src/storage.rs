//! The storage plugin: SRs, and the named byte containers inside them.

use crate::PluginError;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use units::{ContainerId, SrUuid};

/// The `device_config` of a PBD: what the administrator said about how to reach the storage.
pub type DeviceConfig = BTreeMap<String, String>;

/// What `sr.attach` returned: opaque to the core, handed back with every later call, so that an
/// instance may be dropped between any two calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SrHandle(pub String);

/// Who the plugin is and what its configuration keys mean (SMAPIv2 `Query.query`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginInfo {
    /// The SR type, e.g. `file`: 1 to 32 characters of `a-z 0-9 - _`.
    pub driver: String,
    /// For people.
    pub name: String,
    /// For people.
    pub description: String,
    /// Who made it.
    pub vendor: String,
    /// Licence and owner.
    pub copyright: String,
    /// The plugin's own version.
    pub version: String,
    /// `device_config` keys and what each means.
    pub configuration: Vec<(String, String)>,
}

/// Optional interfaces found by looking at the plugin's exports, once, at load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Powers {
    /// Keeps named byte containers; the core lays VHD trees over them.
    pub containers: bool,
    /// Does snapshots itself.
    pub snapshots: bool,
}

/// One answer of `sr.probe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// The configuration completed so far.
    #[serde(with = "pairs")]
    pub configuration: DeviceConfig,
    /// Whether `sr.create` or `sr.attach` would take it as it is.
    pub complete: bool,
    /// The SR that lies there, when one does.
    pub sr: Option<SrStat>,
}

/// Whether a container's capacity is set aside when it is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capacity {
    /// A logical volume: the capacity is taken at once, the end of the container is its capacity.
    Reserved,
    /// A file: starts empty, ends where its content ends, takes what is written.
    Grows,
}

/// The state of an SR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrStat {
    /// Bytes that exist in all.
    pub total_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// How containers take their capacity.
    pub capacity: Capacity,
    /// Whether the storage answers as it should; the text says what is wrong.
    pub health: Result<(), String>,
}

/// One byte container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name in the SR.
    pub id: ContainerId,
    /// Reserved: bytes it holds. Grows: bytes it holds now, or was asked to be able to hold.
    pub capacity_bytes: u64,
    /// Bytes it takes now.
    pub used_bytes: u64,
}

/// How the core reaches a container's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Location {
    /// A regular file below a root that the administrator granted.
    File(PathBuf),
    /// A block device.
    BlockDevice(PathBuf),
}

/// What a storage plugin can do, whatever it was compiled to.
///
/// Contract for every call: idempotent (the same call twice ends in the same state), an instance
/// may be dropped between any two calls, and there is a deadline. `detach` never fails for a
/// reason that retrying would not cure.
#[async_trait]
pub trait StoragePlugin: Send + Sync {
    /// Optional interfaces, fixed at load.
    fn powers(&self) -> Powers;

    /// Says who the plugin is.
    async fn query(&self) -> Result<PluginInfo, PluginError>;

    /// Looks at what a (possibly partial) configuration leads to, without side effects.
    async fn sr_probe(&self, config: &DeviceConfig) -> Result<Vec<ProbeResult>, PluginError>;

    /// Prepares storage for an SR; returns the configuration to store (secrets removed, names
    /// resolved). Does not attach.
    async fn sr_create(
        &self,
        sr: SrUuid,
        config: &DeviceConfig,
    ) -> Result<DeviceConfig, PluginError>;

    /// Makes the SR usable on this host.
    async fn sr_attach(&self, sr: SrUuid, config: &DeviceConfig) -> Result<SrHandle, PluginError>;

    /// Undoes `sr_attach`.
    async fn sr_detach(&self, sr: &SrHandle) -> Result<(), PluginError>;

    /// Wipes the SR's content. The SR is attached here and nowhere else.
    async fn sr_destroy(&self, sr: &SrHandle) -> Result<(), PluginError>;

    /// Says how much space there is and whether the storage is well.
    async fn sr_stat(&self, sr: &SrHandle) -> Result<SrStat, PluginError>;

    /// Lists every container of the SR.
    async fn container_list(&self, sr: &SrHandle) -> Result<Vec<Container>, PluginError>;

    /// Creates a container that reads as zeros (reserved) or is empty (grows). One that is there:
    /// the same container, and its content stays.
    async fn container_create(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError>;

    /// Removes a container; one that is not there is a success.
    async fn container_remove(&self, sr: &SrHandle, id: &ContainerId) -> Result<(), PluginError>;

    /// Renames atomically. `to` must not exist unless the rename already happened.
    async fn container_rename(
        &self,
        sr: &SrHandle,
        from: &ContainerId,
        to: &ContainerId,
    ) -> Result<(), PluginError>;

    /// Makes a container able to hold at least `capacity_bytes`; never shrinks. New bytes read as
    /// zeros; a container that grows by itself is left as it is.
    async fn container_grow(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
        capacity_bytes: u64,
    ) -> Result<Container, PluginError>;

    /// Says where the bytes are.
    async fn container_locate(
        &self,
        sr: &SrHandle,
        id: &ContainerId,
    ) -> Result<Location, PluginError>;
}

/// A map as the wire has it: pairs, each key once.
pub(crate) mod pairs {
    use super::DeviceConfig;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(map: &DeviceConfig, to: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<DeviceConfig, D::Error> {
        let pairs = Vec::<(String, String)>::deserialize(from)?;
        let len = pairs.len();
        let map = DeviceConfig::from_iter(pairs);
        if map.len() != len {
            return Err(serde::de::Error::custom("a key is there twice"));
        }
        Ok(map)
    }
}
