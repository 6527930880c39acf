//! `ioctl`: the console as a terminal, where it is one.

use linux_raw_sys::{general as raw, ioctl as request};

use super::{Args, Outcome};
use crate::errno::Errno;
use crate::fs::node::{Device, Kind};
use crate::process::Process;
use crate::uapi::{Termios, Winsize};

/// Process group of the one process.
const GROUP: u32 = 1;

/// Settings of a fresh Linux terminal.
pub(crate) const fn initial() -> Termios {
    Termios {
        iflag: raw::ICRNL | raw::IXON,
        oflag: raw::OPOST | raw::ONLCR,
        cflag: raw::B38400 | raw::CS8 | raw::CREAD | raw::HUPCL,
        lflag: raw::ISIG
            | raw::ICANON
            | raw::ECHO
            | raw::ECHOE
            | raw::ECHOK
            | raw::ECHOCTL
            | raw::ECHOKE
            | raw::IEXTEN,
        line: 0,
        cc: [
            3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0,
        ],
    }
}

pub(super) fn ioctl(p: &mut Process<'_>, a: Args) -> Outcome {
    let fd = a.int(0);
    let file = p.files.get(fd)?;
    match a.uint(1) {
        request::FIOCLEX => return p.files.set_close_on_exec(fd, true).map(|()| 0),
        request::FIONCLEX => return p.files.set_close_on_exec(fd, false).map(|()| 0),
        request::FIONBIO => {
            let on: i32 = p.memory().read(a.pointer(2))?;
            let bit = if on == 0 { 0 } else { raw::O_NONBLOCK };
            file.flags.set(file.flags.get() & !raw::O_NONBLOCK | bit);
            return Ok(0);
        }
        _ => {}
    }
    let node = p.tree.get(file.node).map(|n| &n.kind);
    if !p.settings.tty || !matches!(node, Some(Kind::Device(Device::Console(_)))) {
        return Err(Errno::ENOTTY);
    }
    match a.uint(1) {
        request::TCGETS => {
            let terminal = p.terminal;
            p.memory().write(a.pointer(2), &terminal)?;
        }
        request::TCSETS | request::TCSETSW | request::TCSETSF => {
            p.terminal = p.memory().read(a.pointer(2))?;
        }
        request::TIOCGWINSZ => {
            let unknown = Winsize {
                rows: 0,
                columns: 0,
                x_pixels: 0,
                y_pixels: 0,
            };
            p.memory().write(a.pointer(2), &unknown)?;
        }
        request::TIOCGPGRP => p.memory().write(a.pointer(2), &GROUP)?,
        request::TIOCSPGRP => {
            let group: u32 = p.memory().read(a.pointer(2))?;
            if group != GROUP {
                return Err(Errno::EPERM);
            }
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}
