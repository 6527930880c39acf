//! A guest's bytes where HTTP/1 is expected: what is let through is the same in whatever pieces it
//! comes, a reader of HTTP that knows nothing of ours agrees on each head, and a request is allowed
//! only where a rule says so
#![no_main]

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use bulkhead_network::http::HttpRule;
use bulkhead_network::{Connect, Deny};
use bulkhead_proxy::framing::{Framing, Violation};
use bulkhead_proxy::quota::Quotas;
use bulkhead_proxy::secrets::Secrets;
use bulkhead_proxy::{Flow, Policy};
use libfuzzer_sys::fuzz_target;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let mut connect: Connect = "tcp:a.example:80".parse().expect("rule");
    connect.http = Some(HttpRule {
        methods: vec!["GET".parse().expect("method")],
        paths: vec!["/v1/**".parse().expect("path")],
    });
    let quotas = Quotas::new(&[]);
    Policy::new(vec![connect], Deny::default(), quotas, Secrets::default())
});

/// What is let through of bytes that come in pieces of this size.
fn through(bytes: &[u8], size: usize) -> (Vec<usize>, Option<Violation>) {
    let mut framing = Framing::default();
    let (mut ends, mut from, mut have) = (Vec::new(), 0, 0);
    while have < bytes.len() {
        have = (have + size).min(bytes.len());
        loop {
            match framing.advance(&bytes[from..have]) {
                Ok(0) => break,
                Ok(count) => {
                    from += count;
                    ends.push(from);
                }
                Err(violation) => return (ends, Some(violation)),
            }
        }
    }
    (ends, None)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    let (ends, end) = through(bytes, bytes.len());
    let pieces = through(bytes, usize::from(*size).max(1));
    assert_eq!((ends.last(), end), (pieces.0.last(), pieces.1));

    // The first thing that passes is a head.
    let Some(head) = ends.first().map(|end| &bytes[..*end]) else {
        return;
    };
    let mut headers = [httparse::EMPTY_HEADER; 4096];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) => assert_eq!(length, head.len()),
        // It has limits of its own, and refuses some bytes of targets.
        Ok(httparse::Status::Partial) => panic!("a head that has not ended"),
        Err(_) => return,
    }
    let count = |name: &str| {
        let same = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case(name);
        request.headers.iter().filter(same).count()
    };
    assert!(count("host") <= 1 && count("content-length") + count("transfer-encoding") <= 1);
    let flow = Flow {
        to: (Ipv4Addr::LOCALHOST, 80).into(),
        port: 80,
        address: None,
        by_address: true,
        names: Box::new(["a.example".to_owned()]),
        pinned: Box::new(["a.example".to_owned()]),
    };
    let (method, path) = (request.method.unwrap_or(""), request.path.unwrap_or(""));
    let path = path.split('?').next().unwrap_or("");
    if POLICY.request(&flow, "a.example", method, path).is_ok() {
        assert_eq!(method, "GET");
        assert!(path == "/v1" || path.starts_with("/v1/"), "{path}");
        assert!(
            !path.contains("..") || !path.split('/').any(|part| part == ".."),
            "{path}"
        );
    }
    assert!(POLICY.request(&flow, "b.example", method, path).is_err());
});
