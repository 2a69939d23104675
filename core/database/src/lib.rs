//! Typed objects with transactions, revisions and a change feed, kept in redb.
//!
//! The objects of one [`Schema`] live in memory as an immutable [`Snapshot`] that readers take
//! without waiting; a [`Tx`] makes the next one, and [`Database::transact`] returns when it is on the
//! disk. Beside the objects lie [`Bucket`]s of small private records.
//!
//! ```text
//! Database ──snapshot()──> Snapshot (revision n) ──row / rows / by_uuid──> Arc<Row>
//!    │                        └──changes_since(m)──> Changes { added, modified, deleted }
//!    └──transact(|tx| ..)──> revision n + 1, atomic, durable ──> subscribe() tells
//! ```
//!
//! What holds at every revision:
//! * every value has the type of its field; every reference names an object of the right class or is null;
//! * a computed field (`reverse_of`) holds exactly the objects whose references point here, sorted;
//! * a uuid is unique in its class;
//! * a transaction is in it whole or not at all, and every one that returned is in it, also after a
//!   crash of the process or the machine.
//!
//! Revisions grow for ever, over restarts too, and never repeat; one from before a restart is too old
//! for the change feed. References in the keys of maps and inside records are not tracked.
//!
//! ```
//! use database::{ClassSchema, Database, FieldSchema, Ref, Schema, Type, Value};
//!
//! let vm = ["uuid", "name_label"].map(|name| FieldSchema::stored(name, Type::String));
//! let classes = vec![ClassSchema { name: "VM".into(), fields: vm.to_vec() }];
//! let dir = tempfile::tempdir()?;
//! let db = Database::open(dir.path().join("db"), Schema { version: 1, classes })?;
//! let (vm, _revision) = db.transact(|tx| {
//!     let vm = Ref::random();
//!     tx.create("VM", vm.clone(), [("name_label", Value::from("web"))])?;
//!     Ok::<_, database::Error>(vm)
//! })?;
//! assert_eq!(db.snapshot().row("VM", &vm).map(|row| row.get("name_label")), Some("web".into()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod bucket;
mod chunk_map;
mod database;
mod error;
mod row;
mod schema;
mod snapshot;
mod state;
mod store;
mod transaction;
mod value;

pub use bucket::Bucket;
pub use database::Database;
pub use error::{Error, ErrorKind};
pub use row::Row;
pub use schema::{ClassSchema, FieldSchema, Schema};
pub use snapshot::{Changes, Deleted, Snapshot};
pub use transaction::Tx;
pub use value::{Ref, Type, Value};
