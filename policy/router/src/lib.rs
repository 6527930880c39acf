//! Model calls: providers, keys, failover, budgets.
//!
//! [`Router`] is what a partition finds at `http://model.bulkhead`: the chat completions of OpenAI
//! and the messages of Anthropic, whichever of the two the chosen provider speaks. It owns no
//! socket and no thread: the gateway gives it requests ([`Router::handle`]), a way to connect
//! ([`Connect`]), the time ([`Clock`]) and the ledger, and tests give it others.
//!
//! What holds, whatever guests and providers do:
//! - a call is made once the most that it can cost is set aside and its intent is in the ledger;
//! - what a partition spends never exceeds its budget, as far as providers bill what a request
//!   allows them to ([`budget`]);
//! - keys go to their provider and nowhere else;
//! - what the other wire cannot say is refused, never dropped.
#![forbid(unsafe_code)]

pub mod budget;
mod cache;
mod call;
pub mod chat;
mod clock;
mod recording;
mod refusal;
mod relay;
mod router;
mod sse;
mod standing;
mod translate;
mod upstream;
mod window;
mod wire;

pub use budget::ALERT_PERCENT;
pub use clock::{Clock, HostClock};
pub use refusal::Body;
pub use router::{Ask, Asking, MAX_REQUEST_BYTES, Outside, Router};
pub use upstream::{Connect, Connecting, HostConnector};
