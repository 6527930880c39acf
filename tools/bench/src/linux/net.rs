//! What is measured between host and guest through a tap. All clocks are the host's, so that a
//! guest's notion of time does not matter: it only pours bytes, or drinks them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::vmm::PATIENCE;
use crate::error::Error;

/// What the guest says when its interface is up.
pub(super) const UP: &str = "bench: net";
/// The tap's own address, which it has already, and the guest's.
const HOST: [u8; 4] = [10, 9, 0, 1];
const GUEST: &str = "10.9.0.2";
/// Where the host listens.
const PORT: u16 = 5001;
/// Where nobody in the guest listens ("discard").
const CLOSED: u16 = 9;
/// How often a round trip is measured, after some that warm caches up.
const TRIPS: usize = 500;
const WARM_UP_TRIPS: usize = 20;
/// How long the guest may take to be reached.
const REACHED: Duration = Duration::from_secs(60);
/// How long bytes flow before they count, and while they do.
const RAMP: Duration = Duration::from_secs(1);
const SPAN: Duration = Duration::from_secs(3);

/// Metric and meaning, in the order of [`Peer::measure`].
pub(super) const METRICS: [(&str, &str); 3] = [
    (
        "net-latency",
        "round trip: TCP connect to a closed port, us",
    ),
    ("net-receive", "one TCP stream to the guest, MiB/s"),
    ("net-transmit", "one TCP stream from the guest, MiB/s"),
];

/// What a shell runs as the first process.
pub(super) fn script() -> String {
    let [a, b, c, d] = HOST;
    let host = format!("/dev/tcp/{a}.{b}.{c}.{d}/{PORT}");
    format!(
        "modprobe virtio_net; ip address add {GUEST}/24 dev eth0; ip link set eth0 up; echo {UP}; \
         bash -c 'cat <{host} >/dev/null; cat /dev/zero >{host}'"
    )
}

/// The host's end.
pub(super) struct Peer(TcpListener);

impl Peer {
    /// Listens, before the guest starts.
    pub(super) fn new() -> Result<Self, Error> {
        let listener = TcpListener::bind(SocketAddr::from((HOST, PORT)));
        listener
            .map(Self)
            .map_err(Error::io("listening at the tap's address"))
    }

    /// The figures of [`METRICS`], of a guest that has said [`UP`].
    pub(super) fn measure(&self) -> Result<[f64; METRICS.len()], Error> {
        // The guest has connected already and waits for its bytes.
        let latency = latency()?;
        let zeros = vec![0; 128 << 10];
        let receive = self.rate(|mut stream| stream.write(&zeros))?;
        let mut buffer = vec![0; 128 << 10];
        let transmit = self.rate(|mut stream| stream.read(&mut buffer))?;
        Ok([latency, receive, transmit])
    }

    /// MiB/s that `step` moves over the guest's next connection.
    fn rate(
        &self,
        mut step: impl FnMut(&TcpStream) -> std::io::Result<usize>,
    ) -> Result<f64, Error> {
        let failed = || Error::io("the guest's connection");
        let mut ready = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        let ready = poll(&mut ready, Some(&PATIENCE));
        if ready.map_err(Error::io("waiting for the guest"))? == 0 {
            return Err(Error::Answer("the guest does not connect".into()));
        }
        let (stream, _) = self.0.accept().map_err(failed())?;
        let patience = Some(Duration::from_secs(60));
        (stream.set_read_timeout(patience))
            .and_then(|()| stream.set_write_timeout(patience))
            .map_err(failed())?;
        let mut start = Instant::now();
        let (mut bytes, mut counts) = (0, false);
        loop {
            match step(&stream).map_err(failed())? {
                0 => return Err(Error::Answer("the guest hung up".into())),
                moved => bytes += moved,
            }
            let passed = start.elapsed();
            if !counts && passed >= RAMP {
                (start, bytes, counts) = (Instant::now(), 0, true);
            } else if counts && passed >= SPAN {
                return Ok(bytes as f64 / f64::from(1 << 20) / passed.as_secs_f64());
            }
        }
    }
}

/// Has the guest's kernel refuse a connection.
fn refusal(guest: &SocketAddr) -> Result<(), Error> {
    match TcpStream::connect_timeout(guest, Duration::from_secs(60)) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(Error::io("reaching the guest")(error)),
        Ok(_) => Err(Error::Answer("the guest listens on port 9".into())),
    }
}

/// Median microseconds until the guest's kernel has refused a connection: one segment each way, and no
/// program of the guest in between.
fn latency() -> Result<f64, Error> {
    let guest = format!("{GUEST}:{CLOSED}").parse::<SocketAddr>();
    let guest = guest.map_err(|error| Error::Answer(error.to_string()))?;
    let mut trips = Vec::with_capacity(TRIPS);
    let begin = Instant::now();
    for trip in 0..WARM_UP_TRIPS + TRIPS {
        let mut start = Instant::now();
        while let Err(error) = refusal(&guest) {
            // The emulated host can take longer than the three seconds in which the guest has to say
            // its address: then nothing was measured yet.
            if trip >= WARM_UP_TRIPS || begin.elapsed() > REACHED {
                return Err(error);
            }
            eprintln!("bulkhead-bench: {error}: once more");
            start = Instant::now();
        }
        if trip >= WARM_UP_TRIPS {
            trips.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
    }
    crate::stats::Stats::of_values(&trips)
        .map(|stats| stats.median)
        .ok_or_else(|| Error::Answer("no round trip".into()))
}
