//! A partition's vsock on the host: the socket that people connect to, and the VMM's way to theirs.
//!
//! The VMM opens nothing by name, so when its guest wants to connect, the supervisor connects for
//! it: to `vsock.sock_PORT` in the partition's directory, which whoever listens there has made.

use crate::error::Error;
use crate::process::packet_pair;
use crate::vmm::send_with;
use bulkhead_machine::control::vsock::{Connect, Connected};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with,
};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Name of the socket in the partition's directory.
const SOCKET: &str = "vsock.sock";
/// Longest request of a VMM in bytes.
const MAX_REQUEST: usize = 256;
/// Most requests served at once, so that a VMM cannot keep its supervisor busy.
const MAX_REQUESTS: usize = 16;

/// The host's side of a partition's vsock.
#[derive(Debug)]
pub(crate) struct Vsock {
    /// The partition's directory.
    directory: OwnedFd,
    listener: UnixListener,
    /// Our end of the VMM's connector.
    pub(crate) connector: OwnedFd,
    /// The VMM may still ask.
    pub(crate) asking: bool,
}

impl Vsock {
    /// Makes the partition's directory, and the listening socket in it; with it comes the VMM's
    /// end of the connector.
    pub(crate) fn new(directory: &Path) -> Result<(Self, OwnedFd), Error> {
        let failed = |source| Error::StateDir {
            path: directory.to_owned(),
            source,
        };
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = openat(CWD, directory, flags, Mode::empty());
        let open = open.map_err(|errno| failed(errno.into()))?;
        let path = below(&open, SOCKET);
        // Of a start before this one: a partition that reboots.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let (connector, theirs) = packet_pair()?;
        let vsock = Self {
            directory: open,
            listener,
            connector,
            asking: true,
        };
        Ok((vsock, theirs))
    }

    /// The listening socket, for the VMM.
    pub(crate) fn listener(&self) -> Result<OwnedFd, Error> {
        let clone = self.listener.as_fd().try_clone_to_owned();
        clone.map_err(Error::system("duplicate a descriptor"))
    }

    /// Listens for the guest's connections to `port` of the host.
    pub(crate) fn listen(&self, port: u32) -> Result<UnixListener, Error> {
        let path = below(&self.directory, &format!("{SOCKET}_{port}"));
        // Of a start before this one: a partition that reboots.
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).map_err(Error::system("listen for the guest's connections"))
    }

    /// Serves what the VMM asks for now.
    pub(crate) fn serve(&mut self) {
        for _ in 0..MAX_REQUESTS {
            let mut packet = [0; MAX_REQUEST];
            let request = match recv(&self.connector, packet.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((count @ 1.., _)) => {
                    serde_json::from_slice(packet.get(..count).unwrap_or_default()).ok()
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                Ok(_) | Err(_) => None,
            };
            let answered = request.is_some_and(|request| self.answer(request).is_ok());
            if !answered {
                self.asking = false;
                return;
            }
        }
    }

    fn answer(&self, Connect { id, port }: Connect) -> io::Result<()> {
        let connected = self.connect(port).ok();
        let answer = Connected {
            id,
            accepted: connected.is_some(),
        };
        send_with(
            self.connector.as_fd(),
            &serde_json::to_vec(&answer)?,
            connected.as_slice(),
        )
    }

    /// Connects without waiting: a listener whose queue is full refuses.
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let address = SocketAddrUnix::new(below(&self.directory, &format!("{SOCKET}_{port}")))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(socket)
    }
}

/// A name in an open directory: short, however deep the directory lies.
fn below(directory: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, SendFlags, recvmsg, send};
    use std::io::{IoSliceMut, Read, Write};
    use std::mem::MaybeUninit;
    use std::os::unix::net::UnixStream;
    use tempfile::tempdir;

    /// Asks as a VMM does; the answer, and what came with it.
    fn ask(theirs: &OwnedFd, vsock: &mut Vsock, request: &[u8]) -> (String, Vec<OwnedFd>) {
        send(theirs, request, SendFlags::empty()).unwrap();
        vsock.serve();
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); 256];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(theirs, &mut into, &mut ancillary, RecvFlags::DONTWAIT);
        let count = got.map_or(0, |got| got.bytes);
        let fds = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        });
        let fds = fds.collect();
        (String::from_utf8_lossy(&bytes[..count]).into_owned(), fds)
    }

    #[test]
    fn a_guests_connection_reaches_who_listens_and_nobody_else() {
        let dir = tempdir().unwrap();
        // Longer than a socket's address may be.
        let directory = dir.path().join("d".repeat(120));
        let (mut vsock, theirs) = Vsock::new(&directory).unwrap();
        assert!(directory.join(SOCKET).exists());
        let (answer, fds) = ask(&theirs, &mut vsock, br#"{"id":1,"port":80}"#);
        assert_eq!(
            (answer.as_str(), fds.len()),
            (r#"{"id":1,"accepted":false}"#, 0)
        );
        let listener = vsock.listen(80).unwrap();
        let (answer, fds) = ask(&theirs, &mut vsock, br#"{"id":2,"port":80}"#);
        assert_eq!(
            (answer.as_str(), fds.len()),
            (r#"{"id":2,"accepted":true}"#, 1)
        );
        let (mut accepted, _) = listener.accept().unwrap();
        let mut ours = UnixStream::from(fds.into_iter().next().unwrap());
        ours.write_all(b"hello").unwrap();
        let mut text = [0; 5];
        accepted.read_exact(&mut text).unwrap();
        assert_eq!(text, *b"hello");
        assert!(vsock.asking);
        ask(&theirs, &mut vsock, b"nonsense");
        assert!(!vsock.asking, "nonsense ends it");
    }

    #[test]
    fn a_partition_that_starts_again_listens_again() {
        let dir = tempdir().unwrap();
        let directory = dir.path().join("p");
        let first = Vsock::new(&directory).unwrap();
        first.0.listen(80).unwrap();
        drop(first);
        let again = Vsock::new(&directory).unwrap();
        assert!(again.0.listen(80).is_ok());
    }
}
