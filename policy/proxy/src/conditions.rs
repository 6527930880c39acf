//! What conditions are asked before an act of the guest takes effect, and what their answers come to.
//! Asked by the threads that record ([`crate::records`]), so that nobody else waits.
//!
//! Conditions speak of hosts, packets of addresses for which names stand. So a connection is asked about
//! under each name that stands for its address, and under the address where that is granted. Of names
//! one that is permitted will do, and is then the one that TLS has to ask for. A name that is forbidden
//! takes the address along: whoever is denied a name is denied where it leads.

use std::net::Ipv4Addr;

use bulkhead_conditions::{Act, Notes, Ruling, Said};
use bulkhead_network::Protocol;

/// A connection, a flow or a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Over this.
    pub protocol: Protocol,
    /// To this address, where it is known.
    pub address: Option<Ipv4Addr>,
    /// To this port.
    pub port: u16,
    /// The names that stand for the address.
    pub names: Vec<String>,
    /// Names that permit nothing, and may forbid: the guest says them, and they stand for another
    /// address if any; or they stand for this one, and the guest means the address.
    pub claimed: Vec<String>,
    /// The address itself is granted.
    pub by_address: bool,
    /// Method and path of a request.
    pub http: Option<(String, String)>,
}

/// All that is asked about one act.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Where it goes.
    pub connection: Option<Connection>,
    /// What it takes beside.
    pub acts: Vec<Act>,
}

/// What is permitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permitted {
    /// The only names that the connection may be for; `None` where the address is permitted.
    pub names: Option<Box<[String]>>,
    /// For the act's record.
    pub notes: Notes,
}

/// An answer, and what it was about.
type Answered = (Act, Said);

impl Question {
    /// Puts it; `ask` asks about one act.
    ///
    /// # Errors
    /// What denies it.
    pub fn put(&self, ask: &dyn Fn(&Act) -> Said) -> Result<Permitted, Ruling> {
        let mut permitted = Permitted::default();
        let connection = self
            .connection
            .as_ref()
            .map(|connection| connection.put(ask));
        let (names, answered) = connection.unzip();
        permitted.names = names.flatten();
        let others = self.acts.iter().map(|act| (act.clone(), ask(act)));
        for (act, said) in answered.into_iter().chain(others) {
            if !said.allows() {
                return Err(said.ruling);
            }
            permitted.notes.add(&act, said);
        }
        Ok(permitted)
    }
}

impl Connection {
    fn act(&self, name: Option<&String>) -> Act {
        Act::Connect {
            protocol: self.protocol,
            name: name.cloned(),
            address: self.address,
            port: self.port,
            http: self.http.clone(),
        }
    }

    /// The names that it may be for, where the address is not permitted, and the answer that decides.
    fn put(&self, ask: &dyn Fn(&Act) -> Said) -> (Option<Box<[String]>>, Answered) {
        let mut names = Vec::new();
        let mut by = None;
        let mut denied: Option<Answered> = None;
        let mut deny = |act: Act, said: Said| {
            // What forbids says more than that nothing permits.
            let says_more = !said.ruling.is_silent();
            if denied.is_none() || says_more {
                denied = Some((act, said));
            }
            says_more
        };
        let mut address_forbidden = false;
        for name in &self.names {
            let act = self.act(Some(name));
            let said = ask(&act);
            match said.ruling.is_permitted() {
                true => {
                    names.push(name.clone());
                    by.get_or_insert((act, said));
                }
                false => address_forbidden |= deny(act, said),
            }
        }
        for name in &self.claimed {
            let act = self.act(Some(name));
            let said = ask(&act);
            if !said.ruling.is_permitted() && !said.ruling.is_silent() {
                return (None, (act, said));
            }
        }
        if self.by_address && !address_forbidden {
            let act = self.act(None);
            let said = ask(&act);
            match said.ruling.is_permitted() {
                true => return (None, (act, said)),
                false => drop(deny(act, said)),
            }
        }
        match (by, denied) {
            (Some(by), _) => (Some(names.into()), by),
            (None, Some(denied)) => (None, denied),
            // Nothing is there to be asked about, and nothing that would permit it.
            (None, None) => {
                let ruling = Ruling::NotPermitted;
                let enforced = true;
                (None, (self.act(None), Said { ruling, enforced }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_conditions::{CONDITIONS, Denied, WOULD_DENY, denied};

    fn connection(names: &[&str], by_address: bool) -> Connection {
        Connection {
            protocol: Protocol::Tcp,
            address: Some(Ipv4Addr::new(192, 0, 2, 1)),
            port: 443,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            claimed: Vec::new(),
            by_address,
            http: None,
        }
    }

    /// Permits names that begin with `p` and forbids those with `f`; the address is permitted or not.
    fn put(connection: &Connection, address: bool, enforced: bool) -> Result<Permitted, Ruling> {
        let rule = |act: &Act| {
            let Act::Connect { name, .. } = act else {
                return Ruling::NotPermitted;
            };
            let by = || vec![name.clone().unwrap_or_default()];
            match name.as_ref().and_then(|name| name.chars().next()) {
                Some('p') => Ruling::Permitted(by()),
                Some('f') => Ruling::Forbidden(by()),
                None if address => Ruling::Permitted(by()),
                _ => Ruling::NotPermitted,
            }
        };
        let question = Question {
            connection: Some(connection.clone()),
            acts: Vec::new(),
        };
        question.put(&|act| Said {
            ruling: rule(act),
            enforced,
        })
    }

    #[test]
    fn a_connection_is_for_the_names_that_are_permitted() {
        // Names, address granted, address permitted; the names that are left, if it is permitted.
        for (names, by_address, address, expected) in [
            (&["p1"][..], false, true, Some(Some(vec!["p1"]))),
            (&["p1", "n", "f"], false, true, Some(Some(vec!["p1"]))),
            (&["n"], false, true, None),
            (&[], true, true, Some(None)),
            (&[], true, false, None),
            (&["n"], true, true, Some(None)),
            (&["p1"], true, false, Some(Some(vec!["p1"]))),
            // Who is denied a name is denied where it leads.
            (&["f"], true, true, None),
            (&["p1", "f"], true, true, Some(Some(vec!["p1"]))),
            (&[], false, true, None),
        ] {
            let found = put(&connection(names, by_address), address, true);
            let found = found.ok().map(|permitted| permitted.names);
            let expected = expected.map(|names: Option<Vec<&str>>| {
                names.map(|names| names.into_iter().map(str::to_owned).collect::<Box<[_]>>())
            });
            assert_eq!(found, expected, "{names:?} {by_address} {address}");
        }
        let denied = put(&connection(&["n", "f"], true), false, true).unwrap_err();
        assert_eq!(denied, Ruling::Forbidden(vec!["f".to_owned()]));
    }

    #[test]
    fn a_name_that_the_guest_makes_up_permits_nothing_and_may_forbid() {
        for (claimed, permitted) in [("p1", false), ("n", false), ("f", false)] {
            let mut made_up = connection(&[], true);
            made_up.claimed = vec![claimed.to_owned()];
            assert_eq!(put(&made_up, false, true).is_ok(), permitted, "{claimed}");
            assert_eq!(
                put(&made_up, true, true).is_ok(),
                claimed != "f",
                "{claimed}"
            );
        }
    }

    #[test]
    fn what_would_be_denied_is_noted_with_what_it_was() {
        let permitted = put(&connection(&["f"], true), true, false).unwrap();
        assert_eq!(permitted.names, None);
        let detail = permitted.notes.into_detail();
        assert_eq!(detail[WOULD_DENY], "forbidden by condition f");
        let act = connection(&[], true).act(Some(&"f".to_owned()));
        let ruling = Ruling::Forbidden(vec!["f".to_owned()]);
        assert_eq!(denied(&detail), Some(vec![Denied { act, ruling }]));
        let permitted = put(&connection(&["p1"], false), true, false).unwrap();
        let detail = permitted.notes.into_detail();
        assert_eq!(detail[CONDITIONS], "permitted by condition p1");
        assert!(!detail.contains_key(WOULD_DENY));
    }

    #[test]
    fn all_that_an_act_takes_has_to_be_permitted() {
        let question = Question {
            connection: Some(connection(&["p1"], false)),
            acts: vec![Act::Secret("key".to_owned())],
        };
        let ask = |secret: bool| {
            question.put(&move |act| Said {
                ruling: match act {
                    Act::Secret(_) if !secret => Ruling::NotPermitted,
                    _ => Ruling::Permitted(vec!["x".to_owned()]),
                },
                enforced: true,
            })
        };
        assert!(ask(true).is_ok());
        assert_eq!(ask(false), Err(Ruling::NotPermitted));
    }
}
