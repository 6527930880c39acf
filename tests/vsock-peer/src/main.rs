//! The guest's side of the vsock suite: stream sockets of `AF_VSOCK`, which busybox does not know.
//!
//! ```text
//! vsock-peer echo PORT         sends back whatever anyone who connects sends, until they end
//! vsock-peer connect PORT      standard input to the host's port, what comes back to standard output
//! vsock-peer ask PORT          each line of standard input to the host's port; after one with an `id` the line
//!                              that answers it, to standard output
//! vsock-peer repeat PORT N     N connections, one after the other, each for one line and its echo
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test program: a panic is its error message"
)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::net::{AddressFamily, SocketType, accept, listen, socket};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["echo", port] => echo(port.parse().expect("a port")),
        ["connect", port] => talk(connect(port.parse().expect("a port"))),
        ["ask", port] => ask(connect(port.parse().expect("a port"))),
        ["repeat", port, count] => {
            for number in 0..count.parse().expect("a number") {
                repeat(port.parse().expect("a port"), number);
            }
        }
        _ => panic!("usage: vsock-peer echo PORT | connect PORT | ask PORT | repeat PORT N"),
    }
}

fn echo(port: u32) {
    let listener = socket(AddressFamily::VSOCK, SocketType::STREAM, None).expect("AF_VSOCK");
    with_address(libc::VMADDR_CID_ANY, port, |address, len| {
        // SAFETY: `address` points to a `sockaddr_vm` of `len` bytes.
        unsafe { libc::bind(listener.as_raw_fd(), address, len) }
    });
    listen(&listener, 128).expect("listen");
    loop {
        // Whatever kind of socket it is, the standard library only reads, writes and shuts down.
        let mut stream = UnixStream::from(accept(&listener).expect("accept"));
        thread::spawn(move || {
            let mut back = stream.try_clone().unwrap();
            // The other side may be gone before it has read its echo.
            let _ = io::copy(&mut stream, &mut back);
            let _ = back.shutdown(Shutdown::Write);
        });
    }
}

fn connect(port: u32) -> UnixStream {
    let stream: OwnedFd = socket(AddressFamily::VSOCK, SocketType::STREAM, None).expect("AF_VSOCK");
    with_address(libc::VMADDR_CID_HOST, port, |address, len| {
        // SAFETY: `address` points to a `sockaddr_vm` of `len` bytes.
        unsafe { libc::connect(stream.as_raw_fd(), address, len) }
    });
    UnixStream::from(stream)
}

fn talk(mut stream: UnixStream) {
    let mut out = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        io::copy(&mut io::stdin(), &mut out).expect("send");
        out.shutdown(Shutdown::Write).expect("shutdown");
    });
    io::copy(&mut stream, &mut io::stdout()).expect("receive");
    sender.join().expect("all sent");
}

fn ask(mut stream: UnixStream) {
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for line in io::stdin().lines() {
        let line = line.expect("a line");
        stream
            .write_all(format!("{line}\n").as_bytes())
            .expect("send");
        if line.contains("\"id\"") {
            let mut answer = String::new();
            answers.read_line(&mut answer).expect("receive");
            print!("{answer}");
        }
    }
}

fn repeat(port: u32, number: u32) {
    let mut stream = connect(port);
    stream
        .write_all(format!("{number}\n").as_bytes())
        .expect("send");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("receive");
    assert_eq!(line.trim_end(), number.to_string());
    reader
        .get_ref()
        .shutdown(Shutdown::Write)
        .expect("shutdown");
    let rest = reader
        .read_to_end(&mut Vec::new())
        .expect("receive the end");
    assert_eq!(rest, 0);
}

/// Calls `act` with the address of `port` at `cid`; ends the program where it fails.
fn with_address(
    cid: u32,
    port: u32,
    act: impl Fn(*const libc::sockaddr, libc::socklen_t) -> libc::c_int,
) {
    let address = libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    };
    let done = act((&raw const address).cast(), size_of_val(&address) as _);
    if done != 0 {
        panic!("port {port} at cid {cid}: {}", io::Error::last_os_error());
    }
}
