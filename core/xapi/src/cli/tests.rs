//! The CLI over a real interface, as a client sees it: what is printed, where, and the exit code.

mod client;
mod disks;
mod generic;
mod life;
mod protocol;

use crate::model::Role;
use crate::testing::Host;
use database::{Ref, Value};

impl Host {
    /// Puts an object in the database behind the interface's back.
    async fn put(&self, class: &str, fields: &[(&str, Value)]) -> Ref {
        let reference = Ref::random();
        let (made, fields) = (reference.clone(), fields.to_vec());
        self.api
            .write(|tx| Ok(tx.create(class, made, fields)?))
            .await
            .unwrap();
        reference
    }

    /// A host whose root has the password `secret`.
    async fn with_password() -> Self {
        let host = Self::new().await;
        host.api
            .set_local_password("root", "secret", Role::PoolAdmin)
            .await
            .unwrap();
        host
    }
}
