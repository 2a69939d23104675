//! How a failed command is told to the person who typed it.

use super::output::Output;
use crate::error::ApiError;
use crate::model::Model;
use database::{Ref, Snapshot};
use thin_cli::{Command, ProtocolError};

/// Why a command failed.
#[derive(Debug)]
pub(super) enum CliError {
    /// The call failed.
    Api(ApiError),
    /// There is no such command.
    UnknownCommand(String),
    /// The command line makes no sense.
    Syntax(String),
    /// This parameter is needed.
    Missing(String),
    /// No session.
    Login(&'static str),
    /// In words.
    Failure(String),
    /// The command failed for some of the objects: uuids and reasons.
    Several(Vec<(String, String)>),
    /// The connection broke.
    Protocol(ProtocolError),
}

impl CliError {
    pub(super) fn failure(text: impl Into<String>) -> Self {
        Self::Failure(text.into())
    }

    pub(super) fn stopping() -> Self {
        Self::failure("the server is stopping")
    }

    pub(super) fn parse(name: &str, expected: &str) -> Self {
        Self::Failure(format!("Failed to parse parameter '{name}': {expected}"))
    }

    pub(super) fn uuid_invalid(class: &str, uuid: &str) -> Self {
        Self::Api(ApiError::new("UUID_INVALID", [class, uuid]))
    }

    /// Tells the client and ends it with 1 when `snapshot` is not there to follow up.
    pub(super) async fn tell(
        self,
        output: &mut Output,
        snapshot: Option<&Snapshot>,
    ) -> Result<(), ProtocolError> {
        let usage = |text: String| format!("{text}\nFor usage run: 'xe help'\n");
        match self {
            Self::Protocol(problem) => return Err(problem),
            Self::Api(error) => match words(&error, snapshot) {
                Some(text) => output.stderr(&text).await?,
                None => {
                    let params = error
                        .params
                        .iter()
                        .map(|param| named(param, snapshot))
                        .collect();
                    output
                        .send(Command::Error {
                            code: error.code.into_owned(),
                            params,
                        })
                        .await?;
                }
            },
            Self::UnknownCommand(name) => {
                output
                    .stderr(&usage(format!("Unknown command: {name}")))
                    .await?;
            }
            Self::Syntax(text) => {
                output
                    .stderr(&usage(format!("Syntax error: {text}")))
                    .await?
            }
            Self::Missing(name) => {
                output
                    .stderr(&usage(format!("Required parameter not found: {name}")))
                    .await?;
            }
            Self::Login(text) => output.stderr(&usage(text.to_owned())).await?,
            Self::Failure(text) => output.stderr(&format!("Error: {text}\n")).await?,
            Self::Several(all) => {
                for (uuid, reason) in all {
                    output
                        .stderr(&format!("operation failed on {uuid}: {reason}\n"))
                        .await?;
                }
            }
        }
        match snapshot {
            Some(_) => Ok(()),
            None => output.exit(1).await,
        }
    }

    /// The error on one line, for lists of several.
    pub(super) fn one_line(&self) -> String {
        match self {
            Self::Api(error) => error.to_string(),
            Self::Failure(text) | Self::Syntax(text) => text.clone(),
            other => format!("{other:?}"),
        }
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<ProtocolError> for CliError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// The sentence for a code and a line per parameter, where there is a sentence.
fn words(error: &ApiError, snapshot: Option<&Snapshot>) -> Option<String> {
    let sentence = SENTENCES.iter().find(|(code, _)| *code == error.code)?.1;
    let names = Model::shared().errors.get(&*error.code)?;
    let mut text = format!("{sentence}\n");
    for (at, param) in error.params.iter().enumerate() {
        let name = names.get(at).copied().unwrap_or("<extra>");
        text += &format!("{name}: {}\n", named(param, snapshot));
    }
    Some(text)
}

/// A reference as its uuid and name; any other text as it is.
fn named(param: &str, snapshot: Option<&Snapshot>) -> String {
    let found = snapshot.and_then(|snapshot| {
        let reference = Ref::from(param);
        snapshot.row(snapshot.class_of(&reference)?, &reference)
    });
    let Some(row) = found else {
        return param.to_owned();
    };
    match row.field("name_label").and_then(|name| name.as_str()) {
        Some(name) => format!("{} ({name})", row.uuid()),
        None => row.uuid().to_owned(),
    }
}

/// Sentences for what people meet; other codes are shown as they are.
const SENTENCES: &[(&str, &str)] = &[
    ("CHANGE_PASSWORD_REJECTED", "The password was not changed."),
    ("DEVICE_ALREADY_ATTACHED", "The device is attached already."),
    ("DEVICE_ALREADY_DETACHED", "The device is not attached."),
    (
        "DEVICE_ALREADY_EXISTS",
        "The VM has a device of this number already.",
    ),
    (
        "DEVICE_DETACH_TIMEOUT",
        "The guest did not let go of the device in time.",
    ),
    ("DOMAIN_EXISTS", "The VM runs already, as another domain."),
    (
        "FIELD_TYPE_ERROR",
        "The value is not of the type that this field has.",
    ),
    (
        "HANDLE_INVALID",
        "The object does not exist; it may have been removed.",
    ),
    ("HOST_OFFLINE", "The host is not reachable."),
    (
        "INTERNAL_ERROR",
        "The server met an error of its own; its log says more.",
    ),
    ("INVALID_DEVICE", "This is no name or number of a device."),
    (
        "INVALID_VALUE",
        "The value is not one that this field takes.",
    ),
    ("MAP_DUPLICATE_KEY", "The map has this key already."),
    (
        "MESSAGE_METHOD_UNKNOWN",
        "The server does not know this call.",
    ),
    (
        "MESSAGE_PARAMETER_COUNT_MISMATCH",
        "The call was made with a wrong number of parameters.",
    ),
    ("MESSAGE_REMOVED", "This call does not exist any more."),
    (
        "NOT_IMPLEMENTED",
        "The server does not offer this call yet.",
    ),
    (
        "OPERATION_BLOCKED",
        "The operation is blocked for this object.",
    ),
    (
        "OPERATION_NOT_ALLOWED",
        "The operation is not allowed in the state the object is in.",
    ),
    (
        "OTHER_OPERATION_IN_PROGRESS",
        "Another operation on the object is under way.",
    ),
    (
        "RBAC_PERMISSION_DENIED",
        "Your role does not allow this call.",
    ),
    ("SESSION_INVALID", "The session is not valid any more."),
    ("SR_FULL", "The storage repository is full."),
    (
        "SR_HAS_NO_PBDS",
        "The storage repository is connected to no host.",
    ),
    (
        "SR_HAS_PBD",
        "The storage repository is still plugged in; unplug its PBDs first.",
    ),
    (
        "SR_NOT_ATTACHED",
        "The storage repository is not plugged in on this host.",
    ),
    ("SR_NOT_EMPTY", "The storage repository still has disks."),
    (
        "SR_OPERATION_NOT_SUPPORTED",
        "The storage repository cannot do this.",
    ),
    (
        "SR_UNKNOWN_DRIVER",
        "No storage manager of this type is loaded.",
    ),
    (
        "SR_UUID_EXISTS",
        "A storage repository of this uuid exists already.",
    ),
    ("TASK_CANCELLED", "The task was cancelled."),
    (
        "TOO_MANY_PENDING_TASKS",
        "The server has too much to do; try again later.",
    ),
    ("UUID_INVALID", "The uuid you supplied was invalid."),
    ("VALUE_NOT_SUPPORTED", "The value is not supported here."),
    ("VBD_IS_EMPTY", "The drive is empty."),
    ("VBD_NOT_EMPTY", "The drive is not empty."),
    (
        "VBD_NOT_REMOVABLE_MEDIA",
        "The medium of this device cannot be changed.",
    ),
    ("VDI_IN_USE", "The disk is in use."),
    (
        "VDI_MISSING",
        "The disk is not on its storage repository any more.",
    ),
    ("VDI_NOT_AVAILABLE", "The disk cannot be used now."),
    ("VDI_READONLY", "The disk is read-only."),
    ("VDI_TOO_SMALL", "The disk is too small."),
    (
        "VM_BAD_POWER_STATE",
        "The VM is not in a power state in which this is possible.",
    ),
    ("VM_HALTED", "The VM does not run."),
    (
        "VM_IS_SNAPSHOT",
        "The VM is a snapshot, which cannot be run.",
    ),
    (
        "VM_IS_TEMPLATE",
        "The VM is a template, which cannot be run.",
    ),
    ("VM_LACKS_FEATURE", "The guest has not got what this needs."),
    (
        "VM_SHUTDOWN_TIMEOUT",
        "The guest did not shut down in time.",
    ),
    (
        "VM_UNSAFE_BOOT",
        "The VM cannot be booted safely from this configuration.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sentence_belongs_to_a_listed_code_and_they_are_sorted() {
        let model = Model::shared();
        for (code, _) in SENTENCES {
            assert!(
                model.errors.contains_key(code),
                "{code} is no code of the model"
            );
        }
        assert!(SENTENCES.is_sorted_by_key(|(code, _)| *code));
    }

    #[test]
    fn parameters_are_named_and_extra_ones_are_marked() {
        let error = ApiError::new("UUID_INVALID", ["VM", "x"]);
        let text = words(&error, None).unwrap();
        assert_eq!(
            text,
            "The uuid you supplied was invalid.\ntype: VM\nuuid: x\n"
        );
        let mut odd = error;
        odd.params.push("more".to_owned());
        assert!(words(&odd, None).unwrap().ends_with("\n<extra>: more\n"));
        let unknown = ApiError {
            code: "NO_SUCH_CODE".into(),
            params: vec![],
        };
        assert_eq!(words(&unknown, None), None);
    }
}
