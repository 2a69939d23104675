//! `PBD`: the link of an SR to a host, and whether the host has it attached.
//!
//! A PBD that could not be plugged when the daemon started says so in its `other_config`: it is
//! tried again at intervals and at the next start, until someone plugs or unplugs it.

use super::handlers;
use super::operations::{Lock, plugged};
use super::sr::uuid_of;
use super::storage_rows::Scan;
use crate::api::{Api, Call};
use crate::error::ApiError;
use crate::generic;
use crate::methods::Entry;
use crate::services::About;
use database::{Ref, Row, Value};
use std::sync::Arc;
use storage::CallContext;

/// Key of `other_config`: the administrator wants it plugged, but it could not be.
pub(crate) const WANTED: &str = "xylem-plug-wanted";

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "PBD.create" => create,
        Quick "PBD.destroy" => destroy,
        Long "PBD.plug" => plug,
        Long "PBD.unplug" => unplug,
        Quick "PBD.set_device_config" => set_device_config,
    ]
}

fn is_attached(row: &Row) -> bool {
    row.field("currently_attached")
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

/// The links of an SR.
pub(super) fn of_sr(api: &Api, sr: &Row) -> Vec<Arc<Row>> {
    let snapshot = api.snapshot();
    let links = sr
        .field("PBDs")
        .and_then(Value::as_set)
        .unwrap_or_default()
        .iter();
    links
        .filter_map(|link| snapshot.row("PBD", link.as_ref()?))
        .collect()
}

async fn create(call: Call) -> Result<Value, ApiError> {
    let fields = generic::new_fields(&call, "PBD")?;
    let reference = Ref::random();
    call.api
        .write(|tx| {
            let same = |row: &&Arc<Row>| {
                ["SR", "host"]
                    .iter()
                    .all(|field| row.field(field) == fields.get(*field))
            };
            if let Some(row) = tx.rows("PBD").find(same) {
                let text = |field| row.get(field).as_str().unwrap_or_default().to_owned();
                let at = [&*text("SR"), &*text("host"), row.reference().as_str()];
                return Err(ApiError::new("PBD_EXISTS", at));
            }
            Ok(tx.create("PBD", reference.clone(), fields)?)
        })
        .await?;
    Ok(Value::Ref(reference))
}

async fn destroy(call: Call) -> Result<Value, ApiError> {
    let reference = call.reference("self");
    call.api
        .write(|tx| {
            if is_attached(&*generic::row(tx, "PBD", &reference)?) {
                return Err(ApiError::not_allowed("the PBD is plugged"));
            }
            generic::remove(tx, "PBD", &reference)
        })
        .await?;
    Ok(Value::Null)
}

async fn set_device_config(call: Call) -> Result<Value, ApiError> {
    let reference = call.reference("self");
    let value = call.arg("value").cloned().unwrap_or_default();
    call.api
        .write(|tx| {
            if is_attached(&*generic::row(tx, "PBD", &reference)?) {
                return Err(ApiError::not_allowed("the PBD is plugged"));
            }
            Ok(tx.set("PBD", &reference, "device_config", value)?)
        })
        .await?;
    Ok(Value::Null)
}

fn sr_of(call: &Call) -> Result<Ref, ApiError> {
    let pbd = call.row("PBD", "self")?;
    Ok(pbd.get("SR").as_ref().cloned().unwrap_or_else(Ref::null))
}

async fn plug(call: Call) -> Result<Value, ApiError> {
    let locks = [Lock::new("SR", &sr_of(&call)?, "plug")];
    let (pbd, ctx) = (call.reference("self"), call.storage());
    call.api
        .with_operation(&call.task_ref(), &locks, attach(&call.api, &ctx, &pbd))
        .await?;
    Ok(Value::Null)
}

async fn unplug(call: Call) -> Result<Value, ApiError> {
    let sr = sr_of(&call)?;
    let locks = [Lock::new("SR", &sr, "unplug")];
    let pbd = call.reference("self");
    let work = async {
        let row = call.api.snapshot().row("SR", &sr);
        let row = row.ok_or_else(|| ApiError::handle_invalid("SR", &sr))?;
        assert_no_disk_is_plugged(&call.api, &row)?;
        let detached = call
            .api
            .services
            .storage
            .sr_detach(&call.storage(), uuid_of(&row)?)
            .await;
        detached.map_err(|error| About::sr(&sr).explain(error))?;
        note(&call.api, &pbd, false, false).await
    };
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

fn assert_no_disk_is_plugged(api: &Api, sr: &Row) -> Result<(), ApiError> {
    let snapshot = api.snapshot();
    let disks = sr
        .field("VDIs")
        .and_then(Value::as_set)
        .unwrap_or_default()
        .iter();
    let mut disks = disks.filter_map(|disk| snapshot.row("VDI", disk.as_ref()?));
    match disks.find(|disk| !plugged(&snapshot, disk).is_empty()) {
        None => Ok(()),
        Some(disk) => Err(ApiError::new(
            "VDI_IN_USE",
            [disk.reference().as_str(), "unplug"],
        )),
    }
}

/// Attaches the SR of a link and reads what is in it. One that is attached is a success.
pub(crate) async fn attach(api: &Api, ctx: &CallContext, pbd: &Ref) -> Result<(), ApiError> {
    let snapshot = api.snapshot();
    let row = snapshot
        .row("PBD", pbd)
        .ok_or_else(|| ApiError::handle_invalid("PBD", pbd))?;
    let sr = row.get("SR").as_ref().cloned().unwrap_or_else(Ref::null);
    let sr = snapshot
        .row("SR", &sr)
        .ok_or_else(|| ApiError::handle_invalid("SR", &sr))?;
    let driver = sr.get("type").as_str().unwrap_or_default().to_owned();
    if !api.has_driver(&driver) {
        return Err(ApiError::new("SR_UNKNOWN_DRIVER", [&driver]));
    }
    let config = row.get("device_config");
    let config = config.as_map().into_iter().flatten();
    let config = config
        .filter_map(|(key, text)| Some((key.clone(), text.as_str()?.to_owned())))
        .collect();
    let attached = api
        .services
        .storage
        .sr_attach(ctx, uuid_of(&sr)?, &driver, &config)
        .await;
    attached.map_err(|error| About::sr(sr.reference()).explain(error))?;
    note(api, pbd, true, false).await?;
    // What cannot be scanned is attached all the same, and tells so when it is used.
    if let Err(error) = Scan::begin(api, &sr)?.run(api, ctx).await {
        tracing::warn!(%error, sr = sr.uuid(), "an attached SR could not be scanned");
    }
    Ok(())
}

/// Writes whether a link is plugged, and whether it should be.
pub(crate) async fn note(
    api: &Api,
    pbd: &Ref,
    attached: bool,
    wanted: bool,
) -> Result<(), ApiError> {
    api.write(|tx| {
        let Some(row) = tx.row("PBD", pbd) else {
            return Ok(());
        };
        tx.set("PBD", pbd, "currently_attached", attached.into())?;
        let mut other = row
            .get("other_config")
            .as_map()
            .cloned()
            .unwrap_or_default();
        match wanted {
            true => other.insert(WANTED.to_owned(), "true".into()),
            false => other.remove(WANTED),
        };
        tx.set("PBD", pbd, "other_config", Value::Map(other))?;
        let sr = row.get("SR").as_ref().cloned().unwrap_or_else(Ref::null);
        // What may be done to the SR and its disks depends on this link.
        let vdis = tx.row("SR", &sr).map(|sr| sr.get("VDIs"));
        if let Some(vdis) = vdis {
            tx.touch("SR", &sr)?;
            for vdi in vdis
                .as_set()
                .unwrap_or_default()
                .iter()
                .filter_map(Value::as_ref)
            {
                tx.touch("VDI", vdi)?;
            }
        }
        Ok(())
    })
    .await
}
