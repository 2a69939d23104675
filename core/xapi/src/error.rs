//! The error every call can end with: a code that clients match on, and its parameters.

use crate::model::Model;
use database::{ErrorKind as DbKind, Ref};
use std::borrow::Cow;
use std::fmt;

/// A failed call: the code and its parameters are the whole interface, clients compare the texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The code, e.g. `HANDLE_INVALID`.
    pub code: Cow<'static, str>,
    /// Its parameters, in the order the code's entry in the model table has them.
    pub params: Vec<String>,
}

impl ApiError {
    /// Makes an error of a listed code.
    ///
    /// # Panics
    /// In debug builds, when the code is not in the table or has another number of parameters.
    pub fn new<const N: usize>(code: &'static str, params: [&str; N]) -> Self {
        debug_assert_eq!(
            Model::shared().errors.get(code).map(Vec::len),
            Some(N),
            "{code} is not a listed code with {N} parameters"
        );
        Self {
            code: code.into(),
            params: params.iter().map(|&param| param.to_owned()).collect(),
        }
    }

    /// A defect of ours, or of something below us that has no code of its own.
    pub fn internal(what: impl fmt::Display) -> Self {
        Self {
            code: "INTERNAL_ERROR".into(),
            params: vec![what.to_string()],
        }
    }

    /// The reference names no object of the class.
    pub fn handle_invalid(class: &str, reference: &Ref) -> Self {
        Self::new("HANDLE_INVALID", [class, reference.as_str()])
    }

    /// A value of the wrong shape for the named field or parameter.
    pub fn field_type(name: &str) -> Self {
        Self::new("FIELD_TYPE_ERROR", [name])
    }

    /// The thing may not be done in the state it is in; the text says why.
    pub fn not_allowed(reason: impl fmt::Display) -> Self {
        Self::new("OPERATION_NOT_ALLOWED", [&reason.to_string()])
    }

    /// Returns the code that clients match on.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Returns the code and the parameters as one list, as `task.error_info` has it.
    pub fn to_list(&self) -> Vec<String> {
        let code = self.code.clone().into_owned();
        std::iter::once(code)
            .chain(self.params.iter().cloned())
            .collect()
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.code, self.params.join(", "))
    }
}

impl std::error::Error for ApiError {}

impl From<database::Error> for ApiError {
    fn from(error: database::Error) -> Self {
        match error.kind() {
            DbKind::Overloaded => Self::new("TOO_MANY_PENDING_TASKS", []),
            _ => Self::internal(chain(&error)),
        }
    }
}

/// Writes an error and everything it was caused by on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
