//! The red team on the network: a program that attacks from inside a guest, and the servers of the host that
//! it would reach if something let it.
//!
//! ```text
//! attacker exfiltrate          carries data out of the partition, by every way there is
//! attacker wander PORT...      reaches for the host and for other partitions; ports of theirs
//! attacker exhaust             uses up what it can
//! attacker serve DIRECTORY     the servers; writes its certificate there, and what it has seen
//! ```
//!
//! For each attack there is a line: `attack NAME: refused: WHY`, or `attack NAME: GOT THROUGH: WHAT`. What
//! is granted, and has to work, is told as `allowed NAME: WHAT`, or `allowed NAME: FAILED: WHY`.
//! Servers see everything that reaches them, so that it is not for the attacker alone to say.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: a panic is its error message"
)]

mod dns;
mod exfiltrate;
mod exhaust;
mod http;
mod serve;
mod wander;

use std::net::Ipv4Addr;

/// The gateway's router, behind which are the loopback services of the host.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The gateway's resolver.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Where the granted servers are.
pub(crate) const GRANTED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// Where the one is whose requests are not narrowed.
pub(crate) const FREE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 78);
/// Where the attacker's own server is.
pub(crate) const EVIL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
/// What is carried out: no server may ever see it.
pub(crate) const BOOTY: &str = "booty-4f1d0c";

/// What an attack came to: what it got, or why it got nothing.
pub(crate) type Outcome = Result<String, String>;

/// Tells how an attack ended.
pub(crate) fn attack(name: &str, outcome: Outcome) {
    match outcome {
        Ok(what) => println!("attack {name}: GOT THROUGH: {}", what.escape_debug()),
        Err(why) => println!("attack {name}: refused: {}", why.escape_debug()),
    }
}

/// Tells how something that is granted went.
pub(crate) fn allowed(name: &str, outcome: Outcome) {
    match outcome {
        Ok(what) => println!("allowed {name}: {}", what.escape_debug()),
        Err(why) => println!("allowed {name}: FAILED: {}", why.escape_debug()),
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["exfiltrate"] => exfiltrate::all(),
        ["wander", ports @ ..] => {
            let ports = ports.iter().map(|port| port.parse().expect("a port"));
            wander::all(&ports.collect::<Vec<u16>>());
        }
        ["exhaust"] => exhaust::all(),
        ["serve", directory] => serve::for_ever(directory.as_ref()),
        _ => panic!("usage: attacker exfiltrate | wander PORT... | exhaust | serve DIRECTORY"),
    }
    println!("attacker: done");
}
