//! A guest that asks anything of its DNS server, and a resolver that answers anything: what goes on is the
//! same however the guest spells it, and carries nothing else; an answer becomes one to the guest's own
//! question, and names the same addresses then.
#![no_main]

use std::net::Ipv4Addr;

use gateway::dns::message::{Code, Query};
use libfuzzer_sys::fuzz_target;

/// As what queries are sent on.
const ID: u16 = 7;
const HEADER: usize = 12;
/// Header, longest name, type and class, EDNS without options.
const LONGEST: usize = HEADER + 255 + 4 + 11;
/// Owner, type, class, time to live, length and address, where the owner is a root.
const SHORTEST_RECORD: usize = 1 + 2 + 2 + 4 + 2 + 4;

/// An answer to what was sent on, with so many records, which are `rest`.
fn answer(forwarded: &[u8], end: usize, count: u8, rest: &[u8]) -> Vec<u8> {
    let mut answer = forwarded[..end].to_vec();
    answer[2] |= 0x80;
    answer[7] = count;
    answer[10..HEADER].fill(0);
    answer.extend(rest);
    answer
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[length, count], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let (asked, rest) = rest.split_at(usize::from(length).min(rest.len()));
    let query = match Query::parse(asked) {
        Ok(query) => query,
        Err(malformed) => {
            if let Some(malformed) = malformed {
                let response = malformed.response();
                assert_eq!(response.len(), HEADER);
                assert_eq!(response[..2], asked[..2]);
                assert_eq!(response[2] & 0x80, 0x80);
            }
            return;
        }
    };
    let forwarded = query.forwarded(ID);
    assert!(forwarded.len() <= LONGEST);
    let again = Query::parse(&forwarded).expect("what goes on is a query");
    assert_eq!(again.name, query.name);
    assert_eq!(again.forwarded(ID), forwarded);
    // With the length of the first label and the end, or the end alone.
    let name = if query.name.is_empty() {
        1
    } else {
        query.name.len() + 2
    };
    let end = HEADER + name + 4;
    let mut shouted = asked.to_vec();
    shouted[HEADER..HEADER + name].make_ascii_uppercase();
    let shouted = Query::parse(&shouted).expect("it is the same in capitals");
    assert_eq!(shouted.forwarded(ID), forwarded);

    for code in [Code::ServerFailure, Code::Refused] {
        assert!(
            !query.is_answered_by(ID, &forwarded),
            "a query is no answer"
        );
        assert_eq!(query.response(code)[..2], query.id.to_be_bytes());
    }
    let address = Ipv4Addr::new(192, 0, 2, 7);
    let local = query.local(address);
    assert!(query.addresses(&local).all(|(known, _)| known == address));

    for mut answer in [rest.to_vec(), answer(&forwarded, end, count, rest)] {
        if !query.is_answered_by(ID, &answer) {
            continue;
        }
        let known: Vec<_> = query.addresses(&answer).collect();
        assert!(known.len() * SHORTEST_RECORD <= answer.len() - end);
        let behind = answer[end..].to_vec();
        query.hand_back(&mut answer);
        assert_eq!(answer[..2], query.id.to_be_bytes());
        assert_eq!(answer[HEADER..end], asked[HEADER..end]);
        assert_eq!(answer[end..], behind);
        assert!(query.addresses(&answer).eq(known));
    }
});
