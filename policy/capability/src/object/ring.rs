//! A ring between two partitions, as one of them names it: `db/queries`.

use super::is_plain_name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The partition at the other end, and the ring's name between the two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RingEnd {
    peer: String,
    ring: String,
}

/// Why a text is no [`RingEnd`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no ring; write PARTITION/RING, as in db/queries", .0.escape_debug())]
pub struct ParseRingError(String);

impl FromStr for RingEnd {
    type Err = ParseRingError;

    fn from_str(text: &str) -> Result<Self, ParseRingError> {
        match text.split_once('/') {
            Some((peer, ring)) if is_plain_name(peer) && is_plain_name(ring) => Ok(Self {
                peer: peer.to_owned(),
                ring: ring.to_owned(),
            }),
            _ => Err(ParseRingError(text.to_owned())),
        }
    }
}

impl fmt::Display for RingEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.peer, self.ring)
    }
}

super::text_form!(RingEnd, ParseRingError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_a_peer_and_a_name() {
        let ring: RingEnd = "db/queries".parse().unwrap();
        assert_eq!(ring.to_string(), "db/queries");
        for wrong in ["", "db", "/x", "db/", "a/b/c", "../x", "a b/c"] {
            assert!(wrong.parse::<RingEnd>().is_err(), "{wrong}");
        }
    }
}
