//! The tools that an agent calls: registry, pipeline, MCP.
#![forbid(unsafe_code)]
