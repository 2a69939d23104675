//! Typed objects with transactions, revisions and a change feed, kept in redb.
