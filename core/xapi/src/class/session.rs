//! `session`: logging in and out.

use super::handlers;
use crate::api::{Api, Call, Caller};
use crate::error::ApiError;
use crate::methods::Entry;
use crate::model::Role;
use crate::session::is_trusted;
use crate::session::password::{ROOT, SetPasswordError};
use database::{Ref, Value};

/// Longest name a client may give itself.
const ORIGINATOR_BYTES_MAX: usize = 256;

pub(super) fn entries() -> Vec<Entry> {
    handlers![
        Quick "session.login_with_password" => login_with_password,
        Quick "session.slave_local_login_with_password" => login_with_password,
        Quick "session.logout" => logout,
        Quick "session.local_logout" => logout,
        Quick "session.change_password" => change_password,
        Quick "session.get_all_subject_identifiers" => get_all_subject_identifiers,
        Quick "session.logout_subject_identifier" => logout_subject_identifier,
    ]
}

async fn login_with_password(call: Call) -> Result<Value, ApiError> {
    let (api, user) = (&call.api, call.text("uname")?);
    let originator = call.text("originator").unwrap_or_default();
    let originator: String = originator.chars().take(ORIGINATOR_BYTES_MAX).collect();
    let is_root = is_trusted(call.caller.origin);
    let role = match is_root {
        // Who opens the local socket is root of this host already.
        true => Some(Role::LocalRoot),
        false => {
            let users = &api.sessions.users;
            users.authenticate(user, call.text("pwd")?).await?
        }
    };
    let user = if is_root { ROOT } else { user };
    let Some(role) = role else {
        tracing::warn!(user, origin = ?call.caller.origin, "login failed");
        return Err(ApiError::new("SESSION_AUTHENTICATION_FAILED", []));
    };
    let session = api
        .sessions
        .open(&api.db, &api.host(), user, role, &originator)
        .await?;
    tracing::info!(user, originator, session = %session, "login");
    Ok(Value::Ref(session))
}

async fn logout(call: Call) -> Result<Value, ApiError> {
    call.api
        .sessions
        .close(&call.api.db, &call.session()?.reference)
        .await?;
    Ok(Value::Null)
}

async fn change_password(call: Call) -> Result<Value, ApiError> {
    let session = call.session()?;
    let users = &call.api.sessions.users;
    let rejected = |why: &str| ApiError::new("CHANGE_PASSWORD_REJECTED", [why]);
    if users
        .authenticate(&session.user, call.text("old_pwd")?)
        .await?
        .is_none()
    {
        return Err(rejected("the old password is wrong"));
    }
    let set = users
        .set(&session.user, call.text("new_pwd")?, session.role)
        .await;
    set.map_err(|error| match error {
        SetPasswordError::Database(error) => error.into(),
        other => rejected(&other.to_string()),
    })?;
    Ok(Value::Null)
}

async fn get_all_subject_identifiers(call: Call) -> Result<Value, ApiError> {
    let users = call.api.sessions.users_logged_in().into_iter();
    Ok(Value::Set(
        users
            .filter(|user| user != ROOT)
            .map(Value::String)
            .collect(),
    ))
}

async fn logout_subject_identifier(call: Call) -> Result<Value, ApiError> {
    let user = call.text("subject_identifier")?;
    for session in call.api.sessions.of_user(user) {
        call.api.sessions.close(&call.api.db, &session).await?;
    }
    Ok(Value::Null)
}

impl Api {
    /// Opens a session as root without a password, for a caller that is root of this host.
    ///
    /// # Errors
    /// `SESSION_AUTHENTICATION_FAILED` for a caller from the network.
    pub async fn login_local_root(
        &self,
        caller: &Caller,
        originator: &str,
    ) -> Result<Ref, ApiError> {
        if !is_trusted(caller.origin) {
            return Err(ApiError::new("SESSION_AUTHENTICATION_FAILED", []));
        }
        self.sessions
            .open(&self.db, &self.host(), ROOT, Role::LocalRoot, originator)
            .await
    }

    /// Closes a session; one that is closed already is a success.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn logout(&self, session: &Ref) -> Result<(), ApiError> {
        self.sessions.close(&self.db, session).await
    }

    /// Says whether the account has a password.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn has_local_user(&self, user: &str) -> Result<bool, ApiError> {
        Ok(self.sessions.users.exists(user)?)
    }

    /// Gives a local account a password, and makes the account where there is none. `root` is the
    /// superuser whatever `role` says.
    ///
    /// # Errors
    /// When the password is empty or longer than 4096 bytes, or cannot be stored.
    pub async fn set_local_password(
        &self,
        user: &str,
        password: &str,
        role: Role,
    ) -> Result<(), SetPasswordError> {
        let role = if user == ROOT { Role::LocalRoot } else { role };
        self.sessions.users.set(user, password, role).await
    }
}
