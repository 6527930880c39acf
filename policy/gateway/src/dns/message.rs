//! DNS messages (RFC 1035, section 4): queries of the guest, which are written anew before they go
//! on, so that nothing but what is understood leaves the partition, spelt in one way; and answers of
//! resolvers.

use std::net::Ipv4Addr;

use smoltcp::wire::{DnsFlags, DnsOpcode, DnsPacket, DnsQuestion, DnsRecord, DnsRecordData};

/// Bytes of the header of a message.
const HEADER: usize = 12;
/// Longest name, as it is sent.
const MAX_NAME: usize = 255;
/// Type of the record that speaks of EDNS (RFC 6891).
const OPT: u16 = 41;
/// Bytes of such a record without options.
const OPT_LEN: usize = 11;
/// Type and class of a record with an IPv4 address.
const ADDRESS: [u8; 4] = [0, 1, 0, 1];
/// Types of records that may be asked for (IANA's registry of DNS parameters): A, NS, CNAME, SOA, PTR, MX,
/// TXT, AAAA, SRV, NAPTR, DS, DNSKEY, TLSA, SVCB, HTTPS, CAA. Any other number would carry what a guest likes to say.
const TYPES: [u16; 16] = [1, 2, 5, 6, 12, 15, 16, 28, 33, 35, 43, 48, 52, 64, 65, 257];
/// Bytes of a question behind its name: type and class.
const QUESTION_END: usize = 4;
/// How long an answer about a local name lives, in seconds.
const LOCAL_TTL: u32 = 60;
/// Largest answer over UDP that is asked for (DNS flag day 2020: it needs no fragments).
const UDP_PAYLOAD: u16 = 1232;
/// Longest query that is read.
pub(crate) const MAX_QUERY: usize = 1024;

/// Responses the gateway itself gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Not understood.
    FormatError = 1,
    /// No resolver answers.
    ServerFailure = 2,
    /// Not a query, or one for a type of record that nobody asks for.
    NotImplemented = 4,
    /// No rule speaks of the name.
    Refused = 5,
}

/// A question of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// By which the guest knows it.
    pub id: u16,
    /// The name in lower case, without the final dot.
    pub name: String,
    /// The question as it was sent: name, type, class.
    question: Vec<u8>,
    /// Recursion desired, checking disabled, authentic data.
    flags: DnsFlags,
    /// Whether the guest speaks EDNS, and wants signatures.
    edns: Option<bool>,
}

/// Why bytes are no query that can be answered with more than an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    id: u16,
    opcode: u8,
    code: Code,
}

/// A query for the IPv4 addresses of a name; nothing where it is none.
pub(crate) fn address_of(host: &str) -> Option<Vec<u8>> {
    let flags = DnsFlags::RECURSION_DESIRED.bits().to_be_bytes();
    let mut bytes = vec![0, 0, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, 0];
    for label in host.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(ADDRESS);
    (bytes.len() <= HEADER + MAX_NAME + ADDRESS.len()).then_some(bytes)
}

impl Query {
    /// Reads a query. `Err(None)` is not even worth an answer.
    ///
    /// # Errors
    /// What to answer.
    pub fn parse(bytes: &[u8]) -> Result<Self, Option<Malformed>> {
        let packet = DnsPacket::new_checked(bytes).map_err(|_| None)?;
        let flags = packet.flags();
        if flags.contains(DnsFlags::RESPONSE) {
            return Err(None);
        }
        let malformed = |code| {
            Some(Malformed {
                id: packet.transaction_id(),
                opcode: packet.opcode().into(),
                code,
            })
        };
        if packet.opcode() != DnsOpcode::Query {
            return Err(malformed(Code::NotImplemented));
        }
        let wrong = malformed(Code::FormatError);
        if packet.question_count() != 1 || bytes.len() > MAX_QUERY {
            return Err(wrong);
        }
        let (rest, question) = DnsQuestion::parse(packet.payload()).map_err(|_| wrong)?;
        if !TYPES.contains(&question.type_.into()) {
            return Err(malformed(Code::NotImplemented));
        }
        let length = packet.payload().len() - rest.len();
        let kept =
            DnsFlags::RECURSION_DESIRED | DnsFlags::CHECK_DISABLED | DnsFlags::AUTHENTIC_DATA;
        Ok(Self {
            id: packet.transaction_id(),
            name: name(question.name).ok_or(wrong)?,
            question: packet.payload().get(..length).ok_or(wrong)?.to_vec(),
            flags: flags & kept,
            edns: edns(packet.additional_record_count(), rest),
        })
    }

    /// The query as it goes to a resolver: only what was understood.
    pub fn forwarded(&self, id: u16) -> Vec<u8> {
        let opt = self.edns.is_some();
        let mut bytes = self.header(id, self.flags.bits(), u16::from(opt));
        bytes.truncate(HEADER);
        bytes.extend(self.asked());
        if let Some(signatures) = self.edns {
            let [high, low] = UDP_PAYLOAD.to_be_bytes();
            let flags = if signatures { 0x80 } else { 0 };
            bytes.extend([0, 0, OPT.to_be_bytes()[1], high, low, 0, 0, flags, 0, 0, 0]);
        }
        bytes
    }

    /// The question as it goes to a resolver: the guest's own spelling would carry a bit with each letter.
    fn asked(&self) -> Vec<u8> {
        let mut asked = self.question.clone();
        let name = asked.len().saturating_sub(QUESTION_END);
        // Lengths of labels are below all letters.
        if let Some(name) = asked.get_mut(..name) {
            name.make_ascii_lowercase();
        }
        asked
    }

    /// Makes the answer to what was forwarded one to what the guest has asked.
    pub fn hand_back(&self, answer: &mut [u8]) {
        if let Some(field) = answer.first_chunk_mut() {
            *field = self.id.to_be_bytes();
        }
        let question = HEADER..HEADER + self.question.len();
        if let Some(question) = answer.get_mut(question) {
            question.copy_from_slice(&self.question);
        }
    }

    /// An answer without records.
    pub fn response(&self, code: Code) -> Vec<u8> {
        let flags = DnsFlags::RESPONSE | DnsFlags::RECURSION_AVAILABLE | self.flags;
        self.header(self.id, flags.bits() | code as u16, 0)
    }

    /// An answer that says: ask again by TCP.
    pub fn truncated(&self) -> Vec<u8> {
        let flags =
            DnsFlags::RESPONSE | DnsFlags::RECURSION_AVAILABLE | DnsFlags::TRUNCATED | self.flags;
        self.header(self.id, flags.bits(), 0)
    }

    /// The answer about a name that stands for `address`, and for nothing else.
    pub fn local(&self, address: Ipv4Addr) -> Vec<u8> {
        let flags = DnsFlags::RESPONSE | DnsFlags::RECURSION_AVAILABLE | self.flags;
        let mut bytes = self.header(self.id, flags.bits(), 0);
        if self.question.ends_with(&ADDRESS) {
            if let Some(answers) = bytes.get_mut(6..8) {
                answers.copy_from_slice(&1_u16.to_be_bytes());
            }
            // The name of the question, by a pointer to it.
            bytes.extend([0xc0, 0x0c]);
            bytes.extend(ADDRESS);
            bytes.extend(LOCAL_TTL.to_be_bytes());
            bytes.extend(4_u16.to_be_bytes());
            bytes.extend(address.octets());
        }
        bytes
    }

    fn header(&self, id: u16, flags: u16, additional: u16) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.question.len() + OPT_LEN);
        for field in [id, flags, 1, 0, 0, additional] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(&self.question);
        bytes
    }

    /// Whether `bytes` answer this query, which was sent as `id`.
    pub fn is_answered_by(&self, id: u16, bytes: &[u8]) -> bool {
        let Ok(packet) = DnsPacket::new_checked(bytes) else {
            return false;
        };
        let question = packet.payload().get(..self.question.len());
        packet.transaction_id() == id
            && packet.flags().contains(DnsFlags::RESPONSE)
            && packet.question_count() == 1
            // Resolvers repeat the name as it was spelt.
            && question == Some(&self.asked())
    }

    /// The addresses in an answer, with their time to live in seconds.
    pub fn addresses<'a>(&self, answer: &'a [u8]) -> impl Iterator<Item = (Ipv4Addr, u32)> + 'a {
        let mut rest = answer
            .get(HEADER + self.question.len()..)
            .unwrap_or_default();
        let count = match DnsPacket::new_checked(answer) {
            Ok(packet) => packet.answer_record_count(),
            Err(_) => 0,
        };
        (0..count)
            .map_while(move |_| {
                let (after, record) = DnsRecord::parse(rest).ok()?;
                rest = after;
                Some(match record.data {
                    DnsRecordData::A(address) => Some((address, record.ttl)),
                    _ => None,
                })
            })
            .flatten()
    }
}

impl Malformed {
    /// The answer: a header.
    pub fn response(self) -> Vec<u8> {
        let flags = DnsFlags::RESPONSE.bits() | u16::from(self.opcode) << 11 | self.code as u16;
        let fields = [self.id, flags, 0, 0, 0, 0];
        fields
            .iter()
            .flat_map(|field| field.to_be_bytes())
            .collect()
    }
}

/// A name in the text form that rules have; names that no rule could spell get a `?`.
fn name(bytes: &[u8]) -> Option<String> {
    if bytes.len() > MAX_NAME {
        return None;
    }
    let mut text = String::new();
    let mut rest = bytes;
    loop {
        let (length, after) = rest.split_first()?;
        if *length == 0 {
            return after.is_empty().then_some(text);
        }
        // A pointer has nothing to point to in a question.
        if *length > 63 {
            return None;
        }
        let (label, after) = after.split_at_checked(usize::from(*length))?;
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            // A dot inside a label is not the one between labels.
            text.push(match byte.to_ascii_lowercase() {
                b @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => b.into(),
                _ => '?',
            });
        }
        rest = after;
    }
}

/// Whether what follows the question speaks EDNS, and asks for signatures.
fn edns(additional: u16, rest: &[u8]) -> Option<bool> {
    let record: &[u8; OPT_LEN] = rest.first_chunk()?;
    let is_opt = additional >= 1 && record.starts_with(&[0, 0, OPT.to_be_bytes()[1]]);
    is_opt.then_some(record[7] & 0x80 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A query for the addresses of `labels`, with EDNS, signatures wanted.
    fn bytes(labels: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for label in labels {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes.extend([0, 0, 41, 2, 0, 0, 0, 0x80, 0, 0, 4, 9, 9, 9, 9]);
        bytes
    }

    fn code(bytes: &[u8]) -> u8 {
        let error = Query::parse(bytes).unwrap_err().unwrap();
        let response = error.response();
        assert_eq!(response[..2], bytes[..2]);
        assert_eq!(response[2] & 0x80, 0x80);
        response[3] & 15
    }

    #[test]
    fn a_query_goes_on_without_what_is_not_understood() {
        let query = Query::parse(&bytes(&["Deb", "debian", "ORG"])).unwrap();
        assert_eq!((query.id, query.name.as_str()), (0x1234, "deb.debian.org"));
        let sent = query.forwarded(7);
        assert_eq!(sent[..12], [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(sent[12..28], *b"\x03deb\x06debian\x03org\0");
        assert_eq!(sent[28..32], [0, 1, 0, 1]);
        assert_eq!(
            sent[32..],
            [0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0],
            "no options"
        );
        assert_eq!(Query::parse(&sent).unwrap().name, query.name);
        let mut plain = bytes(&["a"]);
        plain[11] = 0;
        assert_eq!(Query::parse(&plain).unwrap().forwarded(7).len(), 12 + 3 + 4);
        // The guest hears its own question, and its own number.
        let mut answer = sent.clone();
        query.hand_back(&mut answer);
        assert_eq!(answer[..2], [0x12, 0x34]);
        assert_eq!(answer[12..28], *b"\x03Deb\x06debian\x03ORG\0");
        assert_eq!((&answer[2..12], &answer[28..]), (&sent[2..12], &sent[28..]));
        query.hand_back(&mut [0; 5]);
        let refused = query.response(Code::Refused);
        assert_eq!(refused[..4], [0x12, 0x34, 0x81, 0x85]);
        assert_eq!(query.truncated()[..4], [0x12, 0x34, 0x83, 0x80]);
    }

    #[test]
    fn names_are_spelt_so_that_no_rule_is_fooled() {
        let name = |labels: &[&str]| Query::parse(&bytes(labels)).unwrap().name;
        assert_eq!(name(&[]), "");
        assert_eq!(name(&["a.b", "c"]), "a?b.c");
        assert_eq!(name(&["*", "c"]), "?.c");
        assert_eq!(name(&["\u{1b}", "c"]), "?.c");
        assert_eq!(name(&["_http", "_tcp", "c"]), "_http._tcp.c");
    }

    #[test]
    fn what_is_no_query_is_answered_as_such_or_not() {
        assert_eq!(Query::parse(b""), Err(None));
        assert_eq!(Query::parse(&[0; 11]), Err(None));
        let change = |at: usize, value| {
            let mut bytes = bytes(&["a"]);
            bytes[at] = value;
            bytes
        };
        assert_eq!(Query::parse(&change(2, 0x80)), Err(None), "a response");
        assert_eq!(code(&change(2, 0x28)), 4, "an update");
        assert_eq!(code(&change(5, 0)), 1, "no question");
        assert_eq!(code(&change(5, 2)), 1, "two questions");
        assert_eq!(code(&change(12, 0xc0)), 1, "a pointer");
        assert_eq!(code(&change(18, 3)), 1, "another class");
        assert_eq!(code(&bytes(&["a"])[..17]), 1, "cut off");
        assert_eq!(code(&change(15, 0x7f)), 4, "a type that nobody has");
        let long = "a".repeat(63);
        assert_eq!(
            code(&bytes(&[&long, &long, &long, &long])),
            1,
            "a name of 257"
        );
        let mut padded = bytes(&["a"]);
        padded.resize(MAX_QUERY + 1, 0);
        assert_eq!(code(&padded), 1, "too long");
    }

    #[test]
    fn a_local_name_has_one_address_and_nothing_else() {
        let address = Ipv4Addr::new(10, 0, 2, 2);
        let mut question = bytes(&["a"]);
        let query = Query::parse(&question).unwrap();
        let answer = query.local(address);
        assert_eq!(answer[..8], [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1]);
        assert_eq!(
            query.addresses(&answer).collect::<Vec<_>>(),
            [(address, 60)]
        );
        // Its type is AAAA.
        question[16] = 28;
        let answer = Query::parse(&question).unwrap().local(address);
        assert_eq!(answer[..8], [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 0]);
        assert_eq!(answer.len(), 12 + 3 + 4);
    }

    #[test]
    fn answers_are_known_by_id_and_question() {
        let query = Query::parse(&bytes(&["a"])).unwrap();
        let mut answer = query.forwarded(9);
        assert!(!query.is_answered_by(9, &answer), "a query");
        answer[2] |= 0x80;
        assert!(query.is_answered_by(9, &answer));
        assert!(!query.is_answered_by(8, &answer));
        answer[13] = b'b';
        assert!(!query.is_answered_by(9, &answer));
        assert!(!query.is_answered_by(9, &answer[..14]));
    }

    #[test]
    fn addresses_are_found_among_other_records() {
        let query = Query::parse(&bytes(&["a"])).unwrap();
        let mut answer = query.forwarded(9);
        answer.truncate(12 + 3 + 4);
        answer[2] |= 0x80;
        answer[7] = 4;
        // CNAME, A, AAAA, A; names by pointer.
        answer.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x03\x01b\0");
        answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01");
        answer.extend(b"\xc0\x0c\0\x1c\0\x01\0\0\0\x3c\0\x10");
        answer.extend([0; 16]);
        answer.extend(b"\x01b\0\0\x01\0\x01\0\0\x0e\x10\0\x04\xc0\0\x02\x02");
        let found: Vec<_> = query.addresses(&answer).collect();
        let one = Ipv4Addr::new(192, 0, 2, 1);
        let two = Ipv4Addr::new(192, 0, 2, 2);
        assert_eq!(found, [(one, 60), (two, 3600)]);
        let cut = &answer[..answer.len() - 1];
        assert_eq!(query.addresses(cut).collect::<Vec<_>>(), [(one, 60)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_answered(bytes: Vec<u8>) {
            match Query::parse(&bytes) {
                Ok(query) => {
                    prop_assert_eq!(Query::parse(&query.forwarded(1)).unwrap().name, query.name);
                }
                Err(Some(error)) => prop_assert_eq!(error.response().len(), HEADER),
                Err(None) => {}
            }
        }

        #[test]
        fn any_answer_ends(bytes: Vec<u8>) {
            let query = Query::parse(&super::tests::bytes(&["a"])).unwrap();
            let mut answer = query.forwarded(9);
            answer.truncate(19);
            answer[6] = 0xff;
            answer.extend(&bytes);
            prop_assert!(query.addresses(&answer).count() <= bytes.len());
        }
    }
}
