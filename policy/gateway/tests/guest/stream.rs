//! A guest's connection as an ordinary stream.

use std::io::{self, Read, Write};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;

use super::{Guest, ROUTER};

type Tcp = tcp::Socket<'static>;

/// A connection of the guest as a blocking stream.
pub struct Stream<'g> {
    guest: &'g mut Guest,
    handle: SocketHandle,
}

impl<'g> Stream<'g> {
    /// Connects to a port of the router.
    pub fn connect(guest: &'g mut Guest, port: u16) -> Self {
        let handle = guest.connect(1 << 16, ROUTER, port);
        guest.until("a connection", |guest| {
            guest.get::<Tcp>(handle).may_send().then_some(())
        });
        Self { guest, handle }
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.guest.get::<Tcp>(self.handle).close();
        self.guest.poll();
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let handle = self.handle;
        self.guest.until("something to read", |guest| {
            let socket = guest.get::<Tcp>(handle);
            match socket.recv_slice(buffer) {
                Ok(0) if socket.state() == tcp::State::Closed => {
                    Some(Err(io::ErrorKind::ConnectionReset.into()))
                }
                Ok(0) => None,
                Ok(count) => Some(Ok(count)),
                Err(tcp::RecvError::Finished) => Some(Ok(0)),
                Err(tcp::RecvError::InvalidState) => {
                    Some(Err(io::ErrorKind::ConnectionReset.into()))
                }
            }
        })
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let handle = self.handle;
        self.guest.until("room to write", |guest| {
            let socket = guest.get::<Tcp>(handle);
            match socket.send_slice(bytes) {
                Ok(0) => None,
                Ok(count) => Some(Ok(count)),
                Err(_) => Some(Err(io::ErrorKind::ConnectionReset.into())),
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.guest.poll();
        Ok(())
    }
}
