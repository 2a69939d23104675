//! `SR`: making, introducing, scanning and taking apart of storage repositories.

use super::handlers;
use super::operations::Lock;
use super::pbd;
use super::storage_rows::{self, Scan};
use crate::api::{Api, Call};
use crate::error::ApiError;
use crate::generic;
use crate::methods::Entry;
use crate::services::About;
use database::{Ref, Row, Value};
use plugin::{DeviceConfig, ProbeResult};
use std::collections::BTreeMap;
use std::sync::Arc;
use storage::CallContext;
use units::SrUuid;
use uuid::Uuid;

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Long "SR.create" => create,
        Quick "SR.introduce" => introduce,
        Long "SR.destroy" => destroy,
        Long "SR.forget" => forget,
        Long "SR.scan" => scan,
        Long "SR.update" => update,
        Long "SR.probe" => probe,
        Long "SR.probe_ext" => probe_ext,
        Quick "SR.set_name_label" => set_name_label,
        Quick "SR.set_name_description" => set_name_description,
        Quick "SR.get_supported_types" => get_supported_types,
    ]
}

impl Call {
    /// The context of this call for the storage layer.
    pub(crate) fn storage(&self) -> CallContext {
        CallContext::new(self.caller.request_id.clone())
    }

    /// The task's reference; null for a quick call.
    pub(crate) fn task_ref(&self) -> Ref {
        self.task
            .as_ref()
            .map_or_else(Ref::null, |task| task.reference().clone())
    }
}

/// Reads the uuid of a row as the layers below want it.
pub(super) fn uuid_of<T: std::str::FromStr>(row: &Row) -> Result<T, ApiError> {
    let uuid = row.uuid();
    uuid.parse()
        .map_err(|_| ApiError::internal(format!("{} {uuid:?} has no uuid", row.class())))
}

/// Returns an SR that is attached here.
///
/// # Errors
/// `SR_HAS_NO_PBDS`, `SR_NOT_ATTACHED`.
pub(super) fn attached(api: &Api, sr: &Ref) -> Result<Arc<Row>, ApiError> {
    let snapshot = api.snapshot();
    let row = snapshot
        .row("SR", sr)
        .ok_or_else(|| ApiError::handle_invalid("SR", sr))?;
    let has_pbds = row
        .field("PBDs")
        .and_then(Value::as_set)
        .is_some_and(|pbds| !pbds.is_empty());
    if !has_pbds {
        return Err(ApiError::new("SR_HAS_NO_PBDS", [sr.as_str()]));
    }
    if !super::operations::sr_is_attached(&snapshot, &row) {
        return Err(ApiError::new("SR_NOT_ATTACHED", [sr.as_str()]));
    }
    Ok(row)
}

fn driver(call: &Call) -> Result<&str, ApiError> {
    let driver = call.text("type")?;
    if call.api.has_driver(driver) {
        return Ok(driver);
    }
    Err(ApiError::new("SR_UNKNOWN_DRIVER", [driver]))
}

async fn create(call: Call) -> Result<Value, ApiError> {
    let (driver, host) = (driver(&call)?, call.row("host", "host")?);
    let (name, text) = (call.text("name_label")?, call.text("name_description")?);
    let sr: SrUuid = Uuid::new_v4().into();
    let storage = &call.api.services.storage;
    let config = storage
        .sr_create(
            &call.storage(),
            sr,
            driver,
            &call.strings("device_config"),
            name,
            text,
        )
        .await
        .map_err(|error| About::sr(&Ref::null()).explain(error))?;
    let (reference, pbd) = (Ref::random(), Ref::random());
    let mut fields = described(&call, &sr.to_string())?;
    fields.push(("physical_size", Value::Int(call.int("physical_size")?)));
    let link = [
        ("uuid", Value::String(Uuid::new_v4().to_string())),
        ("SR", Value::from(&reference)),
        ("host", host.reference().into()),
        ("device_config", config_value(&config)),
    ];
    call.api
        .write(|tx| {
            tx.create("SR", reference.clone(), fields)?;
            Ok(tx.create("PBD", pbd.clone(), link)?)
        })
        .await?;
    if let Err(error) = pbd::attach(&call.api, &call.storage(), &pbd).await {
        // An SR that cannot be used is not left behind; what lies in the storage is.
        let forgotten = storage.sr_forget(&call.storage(), sr).await;
        let removed = call.api.write(|tx| {
            generic::remove(tx, "PBD", &pbd)?;
            generic::remove(tx, "SR", &reference)
        });
        if let (Err(error), _) = (removed.await, forgotten) {
            tracing::error!(%error, %sr, "an SR that could not be attached stays on record");
        }
        return Err(error);
    }
    Ok(Value::Ref(reference))
}

fn config_value(config: &DeviceConfig) -> Value {
    Value::Map(
        config
            .iter()
            .map(|(key, text)| (key.clone(), text.as_str().into()))
            .collect(),
    )
}

fn described(call: &Call, uuid: &str) -> Result<Vec<(&'static str, Value)>, ApiError> {
    Ok(vec![
        ("uuid", uuid.into()),
        ("name_label", call.text("name_label")?.into()),
        ("name_description", call.text("name_description")?.into()),
        ("type", call.text("type")?.into()),
        ("content_type", call.text("content_type")?.into()),
        ("shared", call.truth("shared")?.into()),
        ("sm_config", config_value(&call.strings("sm_config"))),
    ])
}

async fn introduce(call: Call) -> Result<Value, ApiError> {
    driver(&call)?;
    let uuid = call.text("uuid")?;
    let uuid: SrUuid = uuid
        .parse()
        .map_err(|_| ApiError::new("UUID_INVALID", ["SR", uuid]))?;
    let uuid = uuid.to_string();
    let (reference, fields) = (Ref::random(), described(&call, &uuid)?);
    call.api
        .write(|tx| {
            if tx.by_uuid("SR", &uuid).is_some() {
                return Err(ApiError::new("SR_UUID_EXISTS", [&uuid]));
            }
            Ok(tx.create("SR", reference.clone(), fields)?)
        })
        .await?;
    Ok(Value::Ref(reference))
}

/// Wipes an SR. It is attached for that when it is not.
async fn destroy(call: Call) -> Result<Value, ApiError> {
    let sr = call.row("SR", "sr")?;
    let locks = [Lock::new("SR", sr.reference(), "destroy")];
    let work = async {
        let pbds = pbd::of_sr(&call.api, &sr);
        let Some(pbd) = pbds.first() else {
            return Err(ApiError::new("SR_HAS_NO_PBDS", [sr.reference().as_str()]));
        };
        pbd::attach(&call.api, &call.storage(), pbd.reference()).await?;
        let destroyed = call
            .api
            .services
            .storage
            .sr_destroy(&call.storage(), uuid_of(&sr)?)
            .await;
        destroyed.map_err(|error| About::sr(sr.reference()).explain(error))?;
        storage_rows::remove_sr(&call.api, sr.reference()).await
    };
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

async fn forget(call: Call) -> Result<Value, ApiError> {
    let sr = call.row("SR", "sr")?;
    let locks = [Lock::new("SR", sr.reference(), "forget")];
    let work = async {
        if super::operations::sr_is_attached(&call.api.snapshot(), &sr) {
            return Err(ApiError::new("SR_HAS_PBD", [sr.reference().as_str()]));
        }
        let forgotten = call
            .api
            .services
            .storage
            .sr_forget(&call.storage(), uuid_of(&sr)?)
            .await;
        forgotten.map_err(|error| About::sr(sr.reference()).explain(error))?;
        storage_rows::remove_sr(&call.api, sr.reference()).await
    };
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

async fn scan(call: Call) -> Result<Value, ApiError> {
    let sr = attached(&call.api, &call.reference("sr"))?;
    let locks = [Lock::new("SR", sr.reference(), "scan")];
    let (ctx, scan) = (call.storage(), Scan::begin(&call.api, &sr)?);
    let work = scan.run(&call.api, &ctx);
    call.api
        .with_operation(&call.task_ref(), &locks, work)
        .await?;
    Ok(Value::Null)
}

async fn update(call: Call) -> Result<Value, ApiError> {
    let sr = attached(&call.api, &call.reference("sr"))?;
    storage_rows::refresh_sr(&call.api, &call.storage(), &sr).await?;
    Ok(Value::Null)
}

async fn probed(call: &Call) -> Result<Vec<ProbeResult>, ApiError> {
    let (driver, config) = (driver(call)?, call.strings("device_config"));
    let found = call
        .api
        .services
        .storage
        .sr_probe(&call.storage(), driver, &config)
        .await;
    found.map_err(|error| About::sr(&Ref::null()).explain(error))
}

/// Answers in XML, as clients of this older message expect it.
async fn probe(call: Call) -> Result<Value, ApiError> {
    let records = probed(&call).await?.into_iter().map(probe_record).collect();
    Ok(Value::String(crate::wire::xmlrpc::encode_value(
        &Value::Set(records),
    )))
}

async fn probe_ext(call: Call) -> Result<Value, ApiError> {
    Ok(Value::Set(
        probed(&call).await?.into_iter().map(probe_record).collect(),
    ))
}

fn probe_record(found: ProbeResult) -> Value {
    let mut record = BTreeMap::from([
        (
            "configuration".to_owned(),
            config_value(&found.configuration),
        ),
        ("complete".to_owned(), found.complete.into()),
        ("extra_info".to_owned(), Value::Map(BTreeMap::new())),
    ]);
    if let Some(stat) = found.sr {
        let bytes = |bytes: u64| Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX));
        let health = if stat.health.is_ok() {
            "healthy"
        } else {
            "unavailable"
        };
        let stat = BTreeMap::from([
            ("name_label".to_owned(), "".into()),
            ("name_description".to_owned(), "".into()),
            ("free_space".to_owned(), bytes(stat.free_bytes)),
            ("total_space".to_owned(), bytes(stat.total_bytes)),
            ("clustered".to_owned(), false.into()),
            ("health".to_owned(), health.into()),
        ]);
        record.insert("sr".to_owned(), Value::Record(stat));
    }
    Value::Record(record)
}

async fn set_name_label(call: Call) -> Result<Value, ApiError> {
    set_name(&call, "name_label").await
}

async fn set_name_description(call: Call) -> Result<Value, ApiError> {
    set_name(&call, "name_description").await
}

/// Names lie in the SR too, so that another host that introduces it has them.
async fn set_name(call: &Call, field: &str) -> Result<Value, ApiError> {
    let (sr, value) = (call.row("SR", "sr")?, Value::from(call.text("value")?));
    call.api
        .write(|tx| Ok(tx.set("SR", sr.reference(), field, value)?))
        .await?;
    let sr = call.row("SR", "sr")?;
    if super::operations::sr_is_attached(&call.api.snapshot(), &sr) {
        let text = |field| sr.get(field).as_str().unwrap_or_default().to_owned();
        let (name, text) = (text("name_label"), text("name_description"));
        let storage = &call.api.services.storage;
        let set = storage
            .sr_set_name(&call.storage(), uuid_of(&sr)?, &name, &text)
            .await;
        set.map_err(|error| About::sr(sr.reference()).explain(error))?;
    }
    Ok(Value::Null)
}

async fn get_supported_types(call: Call) -> Result<Value, ApiError> {
    let drivers = call.api.services.drivers.iter();
    Ok(Value::Set(
        drivers.map(|info| info.driver.as_str().into()).collect(),
    ))
}
