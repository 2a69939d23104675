//! `role`: the fixed roles, and which messages each may send.
//!
//! A permission is named like its message. Permissions are not objects here, so messages that take
//! or give permissions as references answer with none.

use super::handlers;
use crate::api::{Api, Call};
use crate::error::ApiError;
use crate::methods::Entry;
use crate::model::Role;
use database::{Ref, Value};

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "role.get_permissions_name_label" => get_permissions_name_label,
        Quick "role.get_by_permission_name_label" => get_by_permission_name_label,
    ]
}

/// The roles' references, which are the same on every host: clients compare them.
fn fixed(role: Role) -> (Ref, &'static str) {
    let (uuid, text) = match role {
        Role::PoolAdmin | Role::LocalRoot => (
            "0165f154-ba3e-034e-6b27-5d271af109ba",
            "The Pool Administrator role has full access to all features",
        ),
        Role::PoolOperator => (
            "5a6cc1fa-6b4f-4a9f-8d0e-2b0c6f0d7a01",
            "Manages hosts, storage and networks; may not change accounts",
        ),
        Role::VmPowerAdmin => (
            "5a6cc1fa-6b4f-4a9f-8d0e-2b0c6f0d7a02",
            "Manages VMs and takes snapshots of them with their memory",
        ),
        Role::VmAdmin => (
            "5a6cc1fa-6b4f-4a9f-8d0e-2b0c6f0d7a03",
            "Makes, changes and removes VMs",
        ),
        Role::VmOperator => (
            "5a6cc1fa-6b4f-4a9f-8d0e-2b0c6f0d7a04",
            "Uses VMs: start, stop, console, media",
        ),
        Role::ReadOnly => ("5a6cc1fa-6b4f-4a9f-8d0e-2b0c6f0d7a05", "Sees everything"),
    };
    (Ref::from(format!("OpaqueRef:{uuid}")), text)
}

async fn get_permissions_name_label(call: Call) -> Result<Value, ApiError> {
    let row = call.row("role", "self")?;
    let name = row.get("name_label");
    let role = name.as_str().and_then(Role::by_name);
    let permissions = role
        .map(|role| call.api.permissions_of(role))
        .unwrap_or_default();
    Ok(Value::Set(
        permissions.into_iter().map(Value::String).collect(),
    ))
}

async fn get_by_permission_name_label(call: Call) -> Result<Value, ApiError> {
    let least = call.api.role_of(call.text("label")?);
    let roles = Role::GRANTABLE
        .into_iter()
        .filter(|role| least.is_some_and(|least| *role >= least));
    Ok(Value::Set(
        roles.map(|role| Value::Ref(fixed(role).0)).collect(),
    ))
}

impl Api {
    /// Makes the rows of the roles.
    pub(crate) async fn make_roles(&self) -> Result<(), ApiError> {
        self.write(|tx| {
            for role in Role::GRANTABLE {
                let (reference, text) = fixed(role);
                if tx.row("role", &reference).is_some() {
                    continue;
                }
                let uuid = reference
                    .as_str()
                    .trim_start_matches("OpaqueRef:")
                    .to_owned();
                let fields = [
                    ("uuid", Value::String(uuid)),
                    ("name_label", role.name().into()),
                    ("name_description", text.into()),
                ];
                tx.create("role", reference, fields)?;
            }
            Ok(())
        })
        .await
    }
}
