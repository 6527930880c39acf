//! The command's standard streams: the virtio console where there is one, else the kernel's.

use bulkhead_guest_agent::READY;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, tcgetattr, tcsetattr,
};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The better console, and the one that is always there. `/dev/console` is neither: it cannot
/// control a session.
const VIRTIO: &str = "/dev/hvc0";
const SERIAL: &str = "/dev/ttyS0";
/// How often and how long to look for the virtio console: it appears shortly after its module is
/// loaded.
const LOOKS: u32 = 20;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Disables a special character (Linux: `_POSIX_VDISABLE`).
const DISABLED: u8 = 0;

fn open() -> Option<File> {
    // Opening must not wait for a carrier.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let open = |path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .ok()
    };
    if Path::new("/sys/module/virtio_console").exists() {
        for _ in 0..LOOKS {
            let console = open(VIRTIO);
            if console.is_some() {
                return console;
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
    open(SERIAL)
}

/// Makes the console our controlling terminal and our standard streams. Without one, the streams
/// are left as the kernel made them.
pub(crate) fn attach(tty: bool) -> Result<(), String> {
    let Some(console) = open() else { return Ok(()) };
    let failed = |error: rustix::io::Errno| format!("cannot use the console: {error}");
    // From here on, reading waits for input.
    let flags = fcntl_getfl(&console).map_err(failed)?;
    fcntl_setfl(&console, flags - OFlags::NONBLOCK).map_err(failed)?;
    // The kernel may have started us as a session leader already.
    let _ = setsid();
    ioctl_tiocsctty(&console).map_err(failed)?;
    if !tty {
        pass_through(&console).map_err(failed)?;
    }
    rustix::stdio::dup2_stdin(&console).map_err(failed)?;
    rustix::stdio::dup2_stdout(&console).map_err(failed)?;
    rustix::stdio::dup2_stderr(&console).map_err(failed)
}

/// Says that input may come now: what came before would have been echoed.
pub(crate) fn announce() -> Result<(), String> {
    let mut stdout = io::stdout();
    let said = stdout.write_all(READY).and_then(|()| stdout.flush());
    said.map_err(|error| format!("cannot use the console: {error}"))
}

/// Nobody types at the other end: bytes pass unchanged both ways, without echo. Only Ctrl-D keeps
/// its meaning, since it is the one way to say through a terminal that input has ended.
fn pass_through(console: &File) -> rustix::io::Result<()> {
    let mut modes = tcgetattr(console)?;
    modes.input_modes = InputModes::empty();
    modes.output_modes -= OutputModes::OPOST;
    modes.local_modes = LocalModes::ICANON;
    for code in [
        SpecialCodeIndex::VERASE,
        SpecialCodeIndex::VKILL,
        SpecialCodeIndex::VEOL,
        SpecialCodeIndex::VEOL2,
        SpecialCodeIndex::VWERASE,
        SpecialCodeIndex::VLNEXT,
        SpecialCodeIndex::VREPRINT,
    ] {
        modes.special_codes[code] = DISABLED;
    }
    tcsetattr(console, OptionalActions::Now, &modes)
}
