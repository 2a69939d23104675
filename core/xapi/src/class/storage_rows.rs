//! The rows of SRs and VDIs follow what the storage manager says.
//!
//! A scan may run while VDIs are made and removed. It compares revisions instead of locking: it
//! removes no row that is younger than the scan, and makes none for a VDI that was removed since.

use super::sr::uuid_of;
use crate::api::Api;
use crate::error::ApiError;
use crate::generic;
use crate::services::About;
use database::{Ref, Row, Snapshot, Tx, Value};
use std::collections::BTreeSet;
use storage::{CallContext, SrInfo, VdiInfo};
use units::SrUuid;

fn bytes(bytes: u64) -> Value {
    Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// Key of `sm_config` that this host keeps up to date itself.
const LEAF_KEY: &str = "vhd-container";

/// The fields of a VDI's row that the storage manager knows.
fn vdi_fields(tx: &Tx, info: &VdiInfo) -> Vec<(&'static str, Value)> {
    let of = info
        .snapshot_of
        .and_then(|of| tx.by_uuid("VDI", &of.to_string()));
    let keys = info.fields.sm_config.iter();
    // Which container holds the newest layer: for people and tools that look at the storage itself.
    let leaf = (LEAF_KEY.to_owned(), Value::from(info.leaf.as_str()));
    let keys = keys.map(|(key, value)| (key.clone(), Value::from(value.as_str())));
    let keys = keys.chain([leaf]);
    let tags = info.fields.tags.iter().map(|tag| Value::from(tag.as_str()));
    let mut fields = vec![
        ("name_label", info.fields.name_label.as_str().into()),
        (
            "name_description",
            info.fields.name_description.as_str().into(),
        ),
        ("sharable", info.fields.sharable.into()),
        ("read_only", info.fields.read_only.into()),
        ("sm_config", Value::Map(keys.collect())),
        ("tags", Value::Set(tags.collect())),
        ("virtual_size", bytes(info.virtual_bytes)),
        ("physical_utilisation", bytes(info.physical_bytes)),
        ("location", Value::String(info.vdi.to_string())),
        ("managed", true.into()),
        ("missing", info.missing.into()),
        ("is_a_snapshot", info.is_a_snapshot.into()),
        (
            "snapshot_of",
            of.map_or_else(Ref::null, |row| row.reference().clone())
                .into(),
        ),
        (
            "snapshot_time",
            Value::DateTime(info.snapshot_time_unix_ms.unwrap_or_default()),
        ),
    ];
    let kinds = crate::model::Model::shared().enum_values("vdi_type");
    if kinds.contains(&info.fields.kind.as_str()) {
        fields.push(("type", info.fields.kind.as_str().into()));
    }
    fields
}

/// Makes the row of a VDI, or brings it up to date.
pub(super) fn put_vdi(tx: &mut Tx, sr: &Ref, info: &VdiInfo) -> Result<Ref, ApiError> {
    let uuid = info.vdi.to_string();
    let reference = match tx.by_uuid("VDI", &uuid) {
        Some(row) => row.reference().clone(),
        None => {
            let reference = Ref::random();
            let fields = [
                ("uuid", Value::String(uuid)),
                ("SR", sr.into()),
                ("type", "user".into()),
            ];
            tx.create("VDI", reference.clone(), fields)?;
            reference
        }
    };
    for (field, value) in vdi_fields(tx, info) {
        tx.set("VDI", &reference, field, value)?;
    }
    Ok(reference)
}

/// Writes what is known of an SR's size into its row.
fn put_sr(tx: &mut Tx, sr: &Ref, info: &SrInfo) -> Result<(), ApiError> {
    let used = info.total_bytes.saturating_sub(info.free_bytes);
    tx.set("SR", sr, "physical_size", bytes(info.total_bytes))?;
    tx.set("SR", sr, "physical_utilisation", bytes(used))?;
    tx.set("SR", sr, "virtual_allocation", bytes(info.virtual_bytes))?;
    Ok(())
}

/// Asks how an SR is and writes it into its row.
pub(super) async fn refresh_sr(api: &Api, ctx: &CallContext, sr: &Row) -> Result<(), ApiError> {
    let info = api.services.storage.sr_stat(ctx, uuid_of(sr)?).await;
    let info = info.map_err(|error| About::sr(sr.reference()).explain(error))?;
    api.write(|tx| match tx.row("SR", sr.reference()) {
        Some(_) => put_sr(tx, sr.reference(), &info),
        None => Ok(()),
    })
    .await
}

/// Removes the rows of an SR: its links, its VDIs and itself.
pub(super) async fn remove_sr(api: &Api, sr: &Ref) -> Result<(), ApiError> {
    api.write(|tx| {
        for class in ["PBD", "VDI"] {
            let rows = tx
                .rows(class)
                .filter(|row| row.field("SR").and_then(Value::as_ref) == Some(sr));
            let gone: Vec<_> = rows.map(|row| row.reference().clone()).collect();
            for reference in gone {
                generic::remove(tx, class, &reference)?;
            }
        }
        generic::remove(tx, "SR", sr)
    })
    .await
}

/// A scan under way.
pub(super) struct Scan {
    sr: Ref,
    uuid: SrUuid,
    before: Snapshot,
}

impl Scan {
    /// Notes what is on record before the storage is asked.
    pub(super) fn begin(api: &Api, sr: &Row) -> Result<Self, ApiError> {
        Ok(Self {
            sr: sr.reference().clone(),
            uuid: uuid_of(sr)?,
            before: api.snapshot(),
        })
    }

    /// Asks the storage and brings the rows up to date.
    pub(super) async fn run(self, api: &Api, ctx: &CallContext) -> Result<(), ApiError> {
        let found = api.services.storage.sr_scan(ctx, self.uuid).await;
        let found = found.map_err(|error| About::sr(&self.sr).explain(error))?;
        // Removals since the scan began; when the feed does not know, no row is made.
        let changes = api.snapshot().changes_since(self.before.revision()).ok();
        let removed: Option<BTreeSet<String>> =
            changes.map(|changes| changes.deleted.into_iter().map(|gone| gone.uuid).collect());
        api.write(|tx| {
            if tx.row("SR", &self.sr).is_none() {
                return Ok(());
            }
            put_sr(tx, &self.sr, &found.sr)?;
            let mut there = BTreeSet::new();
            // Snapshots come after what they were taken of, so that the reference can be set.
            let (of_others, plain): (Vec<_>, Vec<_>) = found
                .vdis
                .iter()
                .partition(|info| info.snapshot_of.is_some());
            for info in plain.into_iter().chain(of_others) {
                let uuid = info.vdi.to_string();
                let is_gone = removed
                    .as_ref()
                    .is_none_or(|removed| removed.contains(&uuid));
                if tx.by_uuid("VDI", &uuid).is_some() || !is_gone {
                    put_vdi(tx, &self.sr, info)?;
                }
                there.insert(uuid);
            }
            let rows = self.before.rows("VDI");
            let of_this =
                rows.filter(|row| row.field("SR").and_then(Value::as_ref) == Some(&self.sr));
            for row in of_this.filter(|row| !there.contains(row.uuid())) {
                if tx.row("VDI", row.reference()).is_some() {
                    generic::remove(tx, "VDI", row.reference())?;
                }
            }
            Ok(())
        })
        .await
    }
}
