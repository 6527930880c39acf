//! One VMM: its process, and our end of its control socket.

use crate::cgroup::Group;
use crate::error::Error;
use crate::process::Process;
use bulkhead_machine::MachineDescription;
use bulkhead_machine::control::{Command, Event, MAX_MESSAGE_BYTES, Request};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A running VMM. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) process: Process,
    /// Our end of the control socket.
    pub(crate) control: OwnedFd,
    /// Number of the last request.
    last: u64,
}

/// A message of the VMM, or that there will be none.
#[derive(Debug)]
pub(crate) enum Heard {
    Event(Event),
    /// Nothing to read now.
    Nothing,
    /// The VMM closed its end, or said what no VMM of ours says.
    Closed,
}

impl Vmm {
    /// Starts the VMM at `path`, see [`Process::spawn`].
    pub(crate) fn spawn(
        path: &Path,
        description: &MachineDescription,
        control: OwnedFd,
        descriptors: Vec<OwnedFd>,
        group: Option<&Group>,
    ) -> Result<Self, Error> {
        let json = serde_json::to_vec(description).map_err(Error::system("describe a machine"))?;
        Ok(Self {
            process: Process::spawn(path, &json, descriptors, group)?,
            control,
            last: 0,
        })
    }

    /// Takes the next message without waiting.
    pub(crate) fn hear(&self) -> Heard {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        match recv(&self.control, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => Heard::Closed,
            Ok((count, _)) => {
                let packet = buffer.get(..count).unwrap_or_default();
                serde_json::from_slice(packet).map_or(Heard::Closed, Heard::Event)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Heard::Nothing,
            Err(_) => Heard::Closed,
        }
    }

    /// Sends a command with its descriptors; the number under which the reply will come.
    pub(crate) fn ask(&mut self, command: Command, descriptors: &[OwnedFd]) -> Result<u64, Error> {
        self.last += 1;
        let id = self.last;
        let json = serde_json::to_vec(&Request { id, command });
        let json = json.map_err(Error::system("describe a request"))?;
        send_with(self.control.as_fd(), &json, descriptors)
            .map_err(Error::system("send a request to the VMM"))?;
        Ok(id)
    }

    /// Asks the VMM to end its partition. A VMM that cannot be asked will be killed.
    pub(crate) fn ask_to_stop(&mut self) {
        let _ = self.ask(Command::Stop, &[]);
    }
}

/// Sends one packet and descriptors with it, without waiting.
pub(crate) fn send_with(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let message = SendAncillaryMessage::ScmRights(&borrowed);
    let mut space = vec![MaybeUninit::uninit(); message.size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(message) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, flags)?;
    match sent == packet.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::packet_pair;
    use bulkhead_machine::{Boot, Fd};
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, recvmsg};
    use std::io::IoSliceMut;

    fn description() -> MachineDescription {
        let boot = Boot::Linux {
            kernel: Fd(0),
            initrd: None,
            cmdline: String::new(),
            acpi: Fd(0),
        };
        MachineDescription::new("p", Fd(0), Fd(0), Vec::new(), 2, boot)
    }

    fn vmm() -> (Vmm, OwnedFd) {
        let (control, theirs) = packet_pair().unwrap();
        let path = Path::new("/bin/true");
        (
            Vmm::spawn(path, &description(), control, vec![], None).unwrap(),
            theirs,
        )
    }

    #[test]
    fn events_are_parsed_and_nonsense_closes() {
        let (mut vmm, theirs) = vmm();
        assert!(matches!(vmm.hear(), Heard::Nothing));
        let send = |bytes: &[u8]| {
            rustix::net::send(&theirs, bytes, SendFlags::empty()).unwrap();
        };
        send(br#"{"event":"running","jail_gaps":[]}"#);
        assert!(matches!(vmm.hear(), Heard::Event(Event::Running { .. })));
        send(b"{}");
        assert!(matches!(vmm.hear(), Heard::Closed));
        vmm.process.reap();
    }

    #[test]
    fn requests_are_numbered_and_carry_descriptors() {
        let (mut vmm, theirs) = vmm();
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        assert_eq!(vmm.ask(Command::Pause, &[]).unwrap(), 1);
        assert_eq!(vmm.ask(Command::Dump { file: Fd(0) }, &[file]).unwrap(), 2);
        for (text, count) in [
            (r#"{"id":1,"command":"pause"}"#, 0),
            (r#"{"id":2,"command":"dump","file":0}"#, 1),
        ] {
            let mut bytes = [0; 256];
            let mut space = [MaybeUninit::uninit(); 256];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut bytes)];
            let got = recvmsg(&theirs, &mut into, &mut ancillary, RecvFlags::empty()).unwrap();
            let fds: usize = ancillary
                .drain()
                .map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => fds.count(),
                    _ => 0,
                })
                .sum();
            assert_eq!((&bytes[..got.bytes], fds), (text.as_bytes(), count));
        }
        drop(theirs);
        assert!(vmm.ask(Command::Pause, &[]).is_err());
        vmm.process.reap();
    }
}
