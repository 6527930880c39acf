//! The tools, one file for each group of those that work alike.

pub(crate) mod calls;
pub(crate) mod changes;
pub(crate) mod files;
pub(crate) mod git;
pub(crate) mod http;
pub(crate) mod network;
pub(crate) mod processes;
