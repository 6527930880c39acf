//! Linux.
/// e
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {}
impl LinuxError { /// c
 pub fn code(&self) -> &'static str { match *self {} } }
