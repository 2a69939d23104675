//! Local accounts: argon2id hashes and roles in a bucket of the database.
//!
//! A wrong name costs as much time as a wrong password, and at most two checks run at a time: each
//! takes 19 MiB and tens of milliseconds, which is the point of them.

use crate::model::Role;
use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use database::{Bucket, Database};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, LazyLock};
use tokio::sync::Semaphore;

/// The account that is root of this host.
pub(crate) const ROOT: &str = "root";
/// Longer passwords are refused before they are hashed.
const PASSWORD_BYTES_MAX: usize = 4096;

#[derive(Clone, Serialize, Deserialize)]
struct LocalUser {
    /// In the PHC string format.
    hash: String,
    /// Name of the role; `local-root` for root.
    role: String,
}

/// The local accounts.
#[derive(Clone)]
pub(crate) struct LocalUsers {
    bucket: Bucket<LocalUser>,
    checks: Arc<Semaphore>,
}

/// What is checked in place of the hash of an account that does not exist.
static NO_ONE: LazyLock<String> = LazyLock::new(|| hash("").unwrap_or_default());

fn hash(password: &str) -> Option<String> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .ok()
        .map(|hash| hash.to_string())
}

fn verify(password: &str, hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|parsed| {
        Argon2::default()
            .verify_password(password.as_bytes(), &parsed)
            .is_ok()
    })
}

impl LocalUsers {
    pub(super) fn open(db: &Database) -> Self {
        Self {
            bucket: db.bucket("local_users"),
            checks: Arc::new(Semaphore::new(2)),
        }
    }

    /// The role of an account, `None` when there is no such account.
    pub(crate) fn role(&self, user: &str) -> Result<Option<Role>, database::Error> {
        if user == ROOT {
            // Root logs in over the local socket also before it has a password.
            return Ok(Some(Role::LocalRoot));
        }
        Ok(self
            .bucket
            .get(user)?
            .and_then(|user| Role::by_name(&user.role)))
    }

    /// Says whether an account has a password.
    pub(crate) fn exists(&self, user: &str) -> Result<bool, database::Error> {
        Ok(self.bucket.get(user)?.is_some())
    }

    /// Checks a password; answers the role, or `None` when name or password is wrong.
    pub(crate) async fn authenticate(
        &self,
        user: &str,
        password: &str,
    ) -> Result<Option<Role>, database::Error> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Ok(None);
        }
        let known = self.bucket.get(user)?;
        let hash = known
            .as_ref()
            .map_or_else(|| NO_ONE.clone(), |user| user.hash.clone());
        let password = password.to_owned();
        let right = self
            .on_a_thread(move || verify(&password, &hash))
            .await
            .unwrap_or(false);
        Ok(known
            .filter(|_| right)
            .and_then(|user| Role::by_name(&user.role)))
    }

    /// Gives an account a password, and makes the account where there is none.
    pub(crate) async fn set(
        &self,
        user: &str,
        password: &str,
        role: Role,
    ) -> Result<(), SetPasswordError> {
        if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
            return Err(SetPasswordError::Length(password.len()));
        }
        let password = password.to_owned();
        let hash = self.on_a_thread(move || hash(&password)).await.flatten();
        let hash = hash.ok_or(SetPasswordError::Hash)?;
        let record = LocalUser {
            hash,
            role: role.name().to_owned(),
        };
        self.bucket
            .put_async(user, &record)
            .await
            .map_err(SetPasswordError::Database)
    }

    async fn on_a_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let _permit = self.checks.acquire().await.ok()?;
        tokio::task::spawn_blocking(work).await.ok()
    }
}

/// Why a password was not set.
#[derive(Debug, thiserror::Error)]
pub enum SetPasswordError {
    /// It is empty or longer than 4096 bytes.
    #[error("a password has 1 to 4096 bytes, not {0}")]
    Length(usize),
    /// It could not be hashed.
    #[error("the password could not be hashed")]
    Hash,
    /// It could not be stored.
    #[error("the password could not be stored")]
    Database(#[source] database::Error),
}
