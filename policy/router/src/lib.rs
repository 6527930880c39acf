//! Model calls: providers, keys, failover, budgets.
#![forbid(unsafe_code)]
