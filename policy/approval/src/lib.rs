//! Asking a person before a partition acts.
//!
//! A process that acts for a partition (its tools, its gateway) asks its supervisor through an
//! [`Asker`] and waits. The supervisor keeps what is asked in a [`Queue`] until a person answers or
//! the time is over, and tells the process. Nobody but a person allows anything, and no answer is no.
#![forbid(unsafe_code)]

mod asker;
mod question;
mod queue;
mod scope;

pub use asker::{Answer, Asker, MAX_MESSAGE_BYTES, NoAnswer, Request};
pub use question::{Question, QuestionError};
pub use queue::{Asked, Decision, MAX_PENDING, NotPending, PATIENCE, Pending, Queue, Settled};
pub use scope::{ParseScopeError, Scope};
