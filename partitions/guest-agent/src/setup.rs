//! The guest's file systems and modules.

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use std::fs::{self, File};
use std::os::unix::fs::symlink;

/// File system, target, options. devtmpfs comes first: everything else may want a device.
const MOUNTS: [(&str, &str, &str); 5] = [
    ("devtmpfs", "/dev", "mode=0755"),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("tmpfs", "/tmp", "mode=1777"),
    ("tmpfs", "/run", "mode=0755"),
];
/// Links that programs expect in /dev.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what every Linux program expects. A target that the user's own root holds is kept:
/// files mounted below /tmp or /run must stay visible.
pub(crate) fn mount_all() -> Result<(), String> {
    for (kind, target, options) in MOUNTS {
        let failed = |error: String| format!("cannot mount {kind} at {target}: {error}");
        fs::create_dir_all(target).map_err(|error| failed(error.to_string()))?;
        let in_use = kind == "tmpfs"
            && fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some());
        if in_use {
            continue;
        }
        let options = std::ffi::CString::new(options).map_err(|error| failed(error.to_string()))?;
        let flags = MountFlags::NOSUID;
        match mount(kind, target, kind, flags, options.as_c_str()) {
            // BUSY: the kernel mounted it itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(failed(errno.to_string())),
        }
    }
    for (target, link) in LINKS {
        // Kernels and roots that bring their own are right.
        if let Err(error) = symlink(target, link)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(format!("cannot link {link}: {error}"));
        }
    }
    Ok(())
}

/// Loads modules in their order; one that is built in or loaded already is no error.
pub(crate) fn load_modules(paths: &[String]) -> Result<(), String> {
    for path in paths {
        let failed = |error: String| format!("cannot load {path}: {error}");
        let module = File::open(path).map_err(|error| failed(error.to_string()))?;
        match rustix::system::finit_module(&module, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno.to_string())),
        }
    }
    Ok(())
}
