//! The way to the partition's gateway, which makes connections in the partition's name: this process has
//! no network. Used by the family `http`.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use bulkhead_network::tools::{Answer, MAX_PACKET, Wanted};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};

use crate::error::ToolError;
use crate::registry::Deadline;

/// A socket on which connections are asked for, one after the other.
#[derive(Debug)]
pub struct Gate(Mutex<Asking>);

#[derive(Debug)]
struct Asking {
    socket: OwnedFd,
    last: u64,
}

impl Gate {
    /// On this socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self(Mutex::new(Asking { socket, last: 0 }))
    }

    /// A stream on which HTTP/1.1 is spoken with `host`, in the clear up to the gateway. It does not
    /// block.
    ///
    /// # Errors
    /// The gateway refuses, is gone, or does not answer in time.
    pub(crate) fn connect(
        &self,
        host: &str,
        port: u16,
        tls: bool,
        deadline: &Deadline,
    ) -> Result<UnixStream, ToolError> {
        let mut asking = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asking.last += 1;
        let wanted = Wanted {
            id: asking.last,
            host: host.to_owned(),
            port,
            tls,
        };
        let packet = serde_json::to_vec(&wanted).map_err(|error| gone(&error.into()))?;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        send(&asking.socket, &packet, flags).map_err(|errno| gone(&errno.into()))?;
        loop {
            let mut watched = [PollFd::new(&asking.socket, PollFlags::IN)];
            let left = deadline.left();
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match poll(&mut watched, Some(&left)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => deadline.check()?,
                Ok(_) => {
                    let (answer, stream) = receive(&asking.socket).map_err(|error| gone(&error))?;
                    // Others are about what nobody waited for any longer.
                    if answer.id == wanted.id {
                        return match (answer.refused, stream) {
                            (Some(why), _) => Err(ToolError::refused(why)),
                            (None, Some(stream)) => Ok(stream.into()),
                            (None, None) => Err(gone(&io::ErrorKind::InvalidData.into())),
                        };
                    }
                }
                Err(errno) => return Err(gone(&errno.into())),
            }
        }
    }
}

fn gone(error: &io::Error) -> ToolError {
    ToolError::refused(format!("the partition's network is gone: {error}"))
}

/// An answer, and the stream that came with it.
fn receive(socket: &OwnedFd) -> io::Result<(Answer, Option<OwnedFd>)> {
    let mut buffer = [0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut parts, &mut ancillary, flags)?;
    let stream = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let text = buffer.get(..received.bytes).unwrap_or_default();
    Ok((serde_json::from_slice(text)?, stream))
}
