//! The hypervisor as the toolstack sees it, and a simulator of it.
//!
//! A [`Hypervisor`] creates, pauses and destroys domains and says what became of them. It knows
//! nothing of XenAPI, storage or plans: `xenops` decides, a back end does. Every call is
//! idempotent: "destroy" of a domain that is gone is a success. All back ends pass the one suite
//! in [`conformance`].

#![forbid(unsafe_code)]
