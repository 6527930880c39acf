//! Whether the lab, the emulated host with real KVM, can be started here.

use std::path::Path;

use super::{Finding, Installation};

const ID: &str = "lab";

/// Looks for what `cargo xtask lab` uses.
pub(super) fn inspect(installation: &Installation) -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = |program: &str| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    };
    judge(&[
        ("qemu-system-x86_64", in_path("qemu-system-x86_64")),
        (
            "busybox",
            in_path("busybox") || Path::new("/bin/busybox").is_file(),
        ),
        (
            "mke2fs",
            in_path("mke2fs") || Path::new("/sbin/mke2fs").is_file(),
        ),
        (
            "a Linux kernel",
            installation.file("linux/vmlinuz").is_file(),
        ),
    ])
}

fn judge(parts: &[(&str, bool)]) -> Finding {
    let missing: Vec<_> = (parts.iter().filter(|(_, there)| !there))
        .map(|(name, _)| *name)
        .collect();
    match missing.as_slice() {
        [] => Finding::ok(ID, "all that the lab needs is here"),
        missing => Finding::warn(
            ID,
            format!("missing for the lab: {}", missing.join(", ")),
            "run `cargo xtask setup`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(judge(&[("a", true), ("b", true)]).remedy, None);
        assert_eq!(
            judge(&[("a", false), ("b", true), ("c", false)]).what,
            "missing for the lab: a, c"
        );
    }
}
