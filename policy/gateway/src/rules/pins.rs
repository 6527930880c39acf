//! Addresses that names stand for, as long as the answer lives. Used by the rules alone.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use smoltcp::time::{Duration, Instant};

/// Most addresses remembered, under all names.
const MAX_ADDRESSES: usize = 4096;
/// Most names remembered for an address: servers share them.
const MAX_NAMES: usize = 16;
/// An answer lives at least this long, in seconds: programs connect later than they resolve.
const MIN_TTL: u32 = 300;
/// And at most this long.
const MAX_TTL: u32 = 86_400;

/// Names by address.
#[derive(Debug, Default)]
pub(crate) struct Pins(HashMap<Ipv4Addr, Vec<Pin>>);

#[derive(Debug)]
struct Pin {
    name: String,
    until: Instant,
}

impl Pins {
    /// Remembers an answer. The one that would end first makes room where it must.
    pub(crate) fn add(&mut self, now: Instant, name: &str, address: Ipv4Addr, ttl: u32) {
        let seconds = ttl.clamp(MIN_TTL, MAX_TTL);
        let until = now + Duration::from_secs(seconds.into());
        if !self.0.contains_key(&address) && self.0.len() >= MAX_ADDRESSES {
            self.make_room(now);
        }
        let pins = self.0.entry(address).or_default();
        match pins.iter_mut().find(|pin| pin.name == name) {
            Some(pin) => pin.until = pin.until.max(until),
            None => {
                if pins.len() >= MAX_NAMES {
                    let first = pins.iter().enumerate().min_by_key(|(_, pin)| pin.until);
                    if let Some(first) = first.map(|(index, _)| index) {
                        pins.swap_remove(first);
                    }
                }
                pins.push(Pin {
                    name: name.to_owned(),
                    until,
                });
            }
        }
    }

    /// The names that stand for `address`.
    pub(crate) fn of(&self, address: Ipv4Addr, now: Instant) -> impl Iterator<Item = &str> {
        let pins = self.0.get(&address).into_iter().flatten();
        pins.filter(move |pin| pin.until > now)
            .map(|pin| pin.name.as_str())
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, pins| {
            pins.retain(|pin| pin.until > now);
            !pins.is_empty()
        });
        if self.0.len() >= MAX_ADDRESSES {
            let last = |pins: &Vec<Pin>| pins.iter().map(|pin| pin.until).max();
            let first = self.0.iter().min_by_key(|(_, pins)| last(pins));
            if let Some(address) = first.map(|(address, _)| *address) {
                self.0.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Instant {
        Instant::from_secs(seconds)
    }

    fn names(pins: &Pins, address: u32, now: i64) -> Vec<&str> {
        pins.of(Ipv4Addr::from_bits(address), at(now)).collect()
    }

    #[test]
    fn answers_end() {
        let mut pins = Pins::default();
        pins.add(at(0), "short", Ipv4Addr::from_bits(1), 5);
        pins.add(at(0), "long", Ipv4Addr::from_bits(1), 1000);
        pins.add(at(0), "endless", Ipv4Addr::from_bits(2), u32::MAX);
        assert_eq!(names(&pins, 1, 299), ["short", "long"]);
        assert_eq!(names(&pins, 1, 300), ["long"]);
        assert_eq!(names(&pins, 2, 86_399), ["endless"]);
        assert!(names(&pins, 2, 86_400).is_empty());
        pins.add(at(200), "short", Ipv4Addr::from_bits(1), 5);
        assert_eq!(names(&pins, 1, 499), ["short", "long"]);
    }

    #[test]
    fn there_are_only_so_many() {
        let mut pins = Pins::default();
        for n in 0..MAX_ADDRESSES as u32 + 100 {
            pins.add(at(n.into()), "a", Ipv4Addr::from_bits(n), 86_400);
        }
        assert_eq!(pins.0.len(), MAX_ADDRESSES);
        assert!(names(&pins, 99, 5000).is_empty());
        assert_eq!(names(&pins, 100, 5000), ["a"]);
        for n in 0..100 {
            pins.add(
                at(5000 + n),
                &format!("name{n}"),
                Ipv4Addr::from_bits(200),
                60,
            );
        }
        let kept = names(&pins, 200, 5100);
        assert_eq!(kept.len(), MAX_NAMES);
        assert!(kept.contains(&"name99") && !kept.contains(&"name0"));
    }
}
