//! Queries and answers of DNS, as bytes: what an attacker writes no library would.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use crate::Outcome;

/// Types of records.
pub(crate) const A: u16 = 1;
pub(crate) const TXT: u16 = 16;
/// How long silence is waited for.
const SILENCE: Duration = Duration::from_secs(4);

/// A query with one question, and `more` behind it.
pub(crate) fn query(name: &str, kind: u16, class: u16, more: &[u8]) -> Vec<u8> {
    let additional = u8::from(!more.is_empty());
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, additional];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(class.to_be_bytes());
    bytes.extend(more);
    bytes
}

/// Sends a query; the answer's bytes.
pub(crate) fn send(server: Ipv4Addr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(SILENCE)).expect("a socket");
    let talk = || -> std::io::Result<Vec<u8>> {
        socket.connect(SocketAddrV4::new(server, 53))?;
        socket.send(bytes)?;
        let mut answer = vec![0; 4096];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    talk().map_err(|error| error.to_string())
}

/// The same by TCP.
pub(crate) fn send_by_tcp(server: Ipv4Addr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let talk = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(SocketAddrV4::new(server, 53))?;
        stream.set_read_timeout(Some(SILENCE))?;
        let length = u16::try_from(bytes.len()).expect("a short query");
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(bytes)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    talk().map_err(|error| error.to_string())
}

/// What an answer says: it got through where somebody else was asked.
pub(crate) fn read(answer: Result<Vec<u8>, String>) -> Outcome {
    let answer = answer?;
    let code = answer.get(3).map_or(255, |byte| byte & 15);
    match code {
        0 => Ok(format!("answered, {} records", answer.get(7).unwrap_or(&0))),
        5 => Err("REFUSED".into()),
        other => Err(format!("code {other}")),
    }
}

/// The addresses of a name, by the gateway's resolver.
pub(crate) fn addresses(server: Ipv4Addr, name: &str) -> Result<Vec<Ipv4Addr>, String> {
    let asked = query(name, A, 1, &[]);
    let answer = send(server, &asked)?;
    read(Ok(answer.clone()))?;
    // Each record is a pointer to the name, type, class, time to live, length, address.
    let records = answer.get(asked.len()..).unwrap_or_default();
    let address = |record: &[u8]| {
        let octets: [u8; 4] = record.get(12..16)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    Ok(records.chunks(16).filter_map(address).collect())
}
