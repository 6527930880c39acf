//! What the jails of Bulkhead's processes have in common: how one leaves the host's namespaces, and
//! gives up users, capabilities and privileges. Used by the VMM, by `bulkhead-fs` and by
//! `bulkhead-gateway`, each of which decides for itself what it can do without.

pub mod namespaces;
pub mod privileges;
