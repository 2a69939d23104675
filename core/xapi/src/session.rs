//! Who is logged in. The rows of class `session` are what clients see of it.
//!
//! ```text
//!  login ──> row + live session ──(each call)──> last_active
//!                  │ logout │ idle for 24 h │ least recently used of too many
//!                  └────────┴───────────────┴──> gone: SESSION_INVALID
//! ```
//!
//! Sessions outlive the daemon: clients go on after a restart. Passwords are [`password`]'s.

pub(crate) mod password;

use crate::api::Origin;
use crate::datetime::now_ms;
use crate::error::ApiError;
use crate::model::Role;
use database::{Database, Ref, Value};
use parking_lot::{Mutex, RwLock};
use password::LocalUsers;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use uuid::Uuid;

/// Sessions that one originator may have; the least recently used one makes room.
pub(crate) const PER_ORIGINATOR_MAX: usize = 500;
/// Sessions in all.
const TOTAL_MAX: usize = 5000;
/// A session that nothing used for so long is over.
pub(crate) const IDLE_MAX_MS: i64 = 24 * 3600 * 1000;
/// How stale `last_active` of a row may be: writing it at each call would be a disk write per getter.
const LAST_ACTIVE_STALE_MS: i64 = 5 * 60 * 1000;

/// A session that is open.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) reference: Ref,
    /// The account, e.g. `root`.
    pub(crate) user: String,
    pub(crate) role: Role,
    /// What the client calls itself.
    pub(crate) originator: String,
    /// What `event.register` asked for and `event.next` has told, `None` before.
    pub(crate) registration: Mutex<Option<crate::event::Registration>>,
    last_active_ms: AtomicI64,
    written_ms: AtomicI64,
}

impl Session {
    fn new(reference: Ref, user: &str, role: Role, originator: &str, active_ms: i64) -> Self {
        Self {
            reference,
            user: user.to_owned(),
            role,
            originator: originator.to_owned(),
            registration: Mutex::new(None),
            last_active_ms: AtomicI64::new(active_ms),
            written_ms: AtomicI64::new(active_ms),
        }
    }

    fn last_active_ms(&self) -> i64 {
        self.last_active_ms.load(Ordering::Relaxed)
    }
}

/// The open sessions.
pub(crate) struct Sessions {
    live: RwLock<HashMap<Ref, Arc<Session>>>,
    daemon: Arc<Session>,
    pub(crate) users: LocalUsers,
}

impl Sessions {
    /// Takes up the sessions that the database remembers.
    pub(crate) fn load(db: &Database) -> Result<Self, database::Error> {
        let users = LocalUsers::open(db);
        let mut live = HashMap::new();
        for row in db.snapshot().rows("session") {
            let user = row.get("auth_user_name");
            let user = user.as_str().unwrap_or_default();
            let Some(role) = users.role(user)? else {
                continue;
            };
            let originator = row.get("originator");
            let active_ms = row.get("last_active").as_datetime().unwrap_or_default();
            let reference = row.reference().clone();
            let originator = originator.as_str().unwrap_or_default();
            let session = Session::new(reference.clone(), user, role, originator, active_ms);
            live.insert(reference, Arc::new(session));
        }
        let daemon = Session::new(
            Ref::null(),
            password::ROOT,
            Role::LocalRoot,
            "xylemd",
            now_ms(),
        );
        Ok(Self {
            live: RwLock::new(live),
            daemon: Arc::new(daemon),
            users,
        })
    }

    /// Finds the session of a call and notes that it is in use.
    ///
    /// # Errors
    /// `SESSION_INVALID`.
    pub(crate) async fn check(
        &self,
        db: &Database,
        reference: Option<&Ref>,
    ) -> Result<Arc<Session>, ApiError> {
        let reference = reference.cloned().unwrap_or_else(Ref::null);
        let invalid = || ApiError::new("SESSION_INVALID", [reference.as_str()]);
        let session = self
            .live
            .read()
            .get(&reference)
            .cloned()
            .ok_or_else(invalid)?;
        let now = now_ms();
        if now.saturating_sub(session.last_active_ms()) > IDLE_MAX_MS {
            self.close(db, &reference).await?;
            return Err(invalid());
        }
        session.last_active_ms.store(now, Ordering::Relaxed);
        let written = session.written_ms.load(Ordering::Relaxed);
        if now.saturating_sub(written) > LAST_ACTIVE_STALE_MS {
            session.written_ms.store(now, Ordering::Relaxed);
            let seen = Value::DateTime(now);
            db.transact_async(|tx| match tx.row("session", &reference) {
                Some(_) => tx.set("session", &reference, "last_active", seen),
                None => Ok(()),
            })
            .await?;
        }
        Ok(session)
    }

    /// The session of the daemon's own calls; no client sees it.
    pub(crate) fn of_daemon(&self) -> Arc<Session> {
        self.daemon.clone()
    }

    /// Opens a session; closes the least recently used ones where there are too many.
    pub(crate) async fn open(
        &self,
        db: &Database,
        host: &Ref,
        user: &str,
        role: Role,
        originator: &str,
    ) -> Result<Ref, ApiError> {
        let (reference, now) = (Ref::random(), now_ms());
        let crowded = self.crowded_out_by(originator);
        let fields = [
            ("uuid", Value::String(Uuid::new_v4().to_string())),
            ("this_host", host.into()),
            ("last_active", Value::DateTime(now)),
            ("validation_time", Value::DateTime(now)),
            ("is_local_superuser", Value::Bool(role == Role::LocalRoot)),
            ("auth_user_name", user.into()),
            ("originator", originator.into()),
        ];
        db.transact_async(|tx| {
            for gone in &crowded {
                if tx.row("session", gone).is_some() {
                    tx.remove("session", gone)?;
                }
            }
            tx.create("session", reference.clone(), fields)
        })
        .await?;
        let session = Session::new(reference.clone(), user, role, originator, now);
        let mut live = self.live.write();
        for gone in &crowded {
            live.remove(gone);
        }
        live.insert(reference.clone(), Arc::new(session));
        Ok(reference)
    }

    /// Closes a session; one that is closed already is a success.
    pub(crate) async fn close(&self, db: &Database, reference: &Ref) -> Result<(), ApiError> {
        self.live.write().remove(reference);
        db.transact_async(|tx| match tx.row("session", reference) {
            Some(_) => tx.remove("session", reference),
            None => Ok(()),
        })
        .await?;
        Ok(())
    }

    /// Makes a session look as if it had not been used for so long.
    #[cfg(test)]
    pub(crate) fn age(&self, reference: &Ref, by_ms: i64) {
        if let Some(session) = self.live.read().get(reference) {
            session.last_active_ms.fetch_sub(by_ms, Ordering::Relaxed);
        }
    }

    /// How long nobody has used a session.
    #[cfg(test)]
    pub(crate) fn idle_ms(&self, reference: &Ref) -> i64 {
        let live = self.live.read();
        live.get(reference).map_or(0, |session| {
            now_ms().saturating_sub(session.last_active_ms())
        })
    }

    /// The sessions of one account.
    pub(crate) fn of_user(&self, user: &str) -> Vec<Ref> {
        let live = self.live.read();
        live.values()
            .filter(|s| s.user == user)
            .map(|s| s.reference.clone())
            .collect()
    }

    /// The accounts that have sessions, sorted.
    pub(crate) fn users_logged_in(&self) -> Vec<String> {
        let mut users: Vec<_> = self.live.read().values().map(|s| s.user.clone()).collect();
        users.sort();
        users.dedup();
        users
    }

    fn crowded_out_by(&self, originator: &str) -> Vec<Ref> {
        let live = self.live.read();
        let same = || {
            live.values()
                .filter(|session| session.originator == originator)
        };
        let oldest = |sessions: &mut dyn Iterator<Item = &Arc<Session>>| {
            sessions
                .min_by_key(|session| session.last_active_ms())
                .map(|s| s.reference.clone())
        };
        if same().count() >= PER_ORIGINATOR_MAX {
            oldest(&mut same()).into_iter().collect()
        } else if live.len() >= TOTAL_MAX {
            oldest(&mut live.values()).into_iter().collect()
        } else {
            Vec::new()
        }
    }
}

/// Says whether a caller is root of this host without a password.
pub(crate) fn is_trusted(origin: Origin) -> bool {
    matches!(origin, Origin::LocalRoot | Origin::Internal)
}
