//! What the jail of a VMM is built from: user namespaces, Landlock, seccomp.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr,
};

use super::{Finding, read, read_number};

/// Reads all three.
pub(super) fn inspect() -> [Finding; 3] {
    [
        judge_user_namespaces(&UserNamespaces::read()),
        judge_landlock(landlock_abi()),
        judge_seccomp(read("/proc/sys/kernel/seccomp/actions_avail").as_deref()),
    ]
}

/// What decides whether a process may create a user namespace.
struct UserNamespaces {
    root: bool,
    supported: bool,
    /// `user.max_user_namespaces`.
    max: Option<u64>,
    /// `kernel.unprivileged_userns_clone` of Debian kernels.
    unprivileged_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` of Ubuntu kernels.
    apparmor_restrict: Option<u64>,
}

impl UserNamespaces {
    fn read() -> Self {
        Self {
            root: rustix::process::geteuid().is_root(),
            supported: std::fs::exists("/proc/self/ns/user").unwrap_or(false),
            max: read_number("/proc/sys/user/max_user_namespaces"),
            unprivileged_clone: read_number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor_restrict: read_number(
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            ),
        }
    }
}

fn judge_user_namespaces(found: &UserNamespaces) -> Finding {
    let id = "user-namespaces";
    if !found.supported {
        return Finding::warn(id, "not in this kernel", "use a kernel with CONFIG_USER_NS");
    }
    if found.max == Some(0) {
        return Finding::warn(
            id,
            "switched off (user.max_user_namespaces is 0)",
            "sysctl user.max_user_namespaces=10000",
        );
    }
    if found.root {
        return Finding::ok(id, "allowed (running as root)");
    }
    if found.unprivileged_clone == Some(0) {
        return Finding::warn(
            id,
            "for root only (kernel.unprivileged_userns_clone is 0)",
            "sysctl kernel.unprivileged_userns_clone=1",
        );
    }
    if found.apparmor_restrict == Some(1) {
        return Finding::warn(
            id,
            "restricted by AppArmor",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for \
             bulkhead-vmm that allows userns",
        );
    }
    Finding::ok(id, "allowed to everybody")
}

/// What Landlock offers.
enum Landlock {
    Abi(i32),
    NotEnabled,
    NotImplemented,
}

/// Asks for Landlock's ABI by restricting a thread that ends right after; the crate tells it only then.
fn landlock_abi() -> Option<Landlock> {
    let restrict = || {
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V1))
            .ok()?
            .create()
            .ok()?
            .restrict_self()
            .ok()?;
        Some(match status.landlock {
            LandlockStatus::NotEnabled => Landlock::NotEnabled,
            LandlockStatus::NotImplemented => Landlock::NotImplemented,
            LandlockStatus::Available {
                effective_abi,
                kernel_abi,
            } => Landlock::Abi(kernel_abi.unwrap_or(effective_abi as i32)),
        })
    };
    std::thread::spawn(restrict).join().ok()?
}

fn judge_landlock(found: Option<Landlock>) -> Finding {
    let id = "landlock";
    match found {
        Some(Landlock::Abi(abi)) => Finding::ok(id, format!("ABI {abi}")),
        Some(Landlock::NotEnabled) => Finding::warn(
            id,
            "in this kernel, but not switched on",
            "add landlock to the kernel's lsm= boot parameter",
        ),
        Some(Landlock::NotImplemented) => {
            Finding::warn(id, "not in this kernel", "use Linux 5.13 or newer")
        }
        None => Finding::warn(id, "cannot be tried", "look at the kernel's log"),
    }
}

/// Judges `kernel/seccomp/actions_avail`.
fn judge_seccomp(actions: Option<&str>) -> Finding {
    let id = "seccomp";
    match actions {
        Some(actions)
            if actions
                .split_whitespace()
                .any(|action| action == "kill_process") =>
        {
            Finding::ok(id, "filters, ending the whole process")
        }
        Some(_) => Finding::warn(
            id,
            "filters cannot end a process",
            "use Linux 4.14 or newer",
        ),
        None => Finding::warn(id, "no filters", "use a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Level;

    #[test]
    fn user_namespaces_are_judged_for_who_asks() {
        let open = || UserNamespaces {
            root: false,
            supported: true,
            max: Some(1000),
            unprivileged_clone: None,
            apparmor_restrict: None,
        };
        for (found, level) in [
            (open(), Level::Ok),
            (
                UserNamespaces {
                    supported: false,
                    ..open()
                },
                Level::Warn,
            ),
            (
                UserNamespaces {
                    max: Some(0),
                    root: true,
                    ..open()
                },
                Level::Warn,
            ),
            (
                UserNamespaces {
                    unprivileged_clone: Some(1),
                    ..open()
                },
                Level::Ok,
            ),
            (
                UserNamespaces {
                    unprivileged_clone: Some(0),
                    ..open()
                },
                Level::Warn,
            ),
            (
                UserNamespaces {
                    unprivileged_clone: Some(0),
                    root: true,
                    ..open()
                },
                Level::Ok,
            ),
            (
                UserNamespaces {
                    apparmor_restrict: Some(1),
                    ..open()
                },
                Level::Warn,
            ),
            (
                UserNamespaces {
                    apparmor_restrict: Some(1),
                    root: true,
                    ..open()
                },
                Level::Ok,
            ),
        ] {
            let finding = judge_user_namespaces(&found);
            assert_eq!(finding.level, level, "{}", finding.what);
            assert_eq!(finding.remedy.is_some(), level != Level::Ok);
        }
    }

    #[test]
    fn the_calling_thread_stays_unrestricted() {
        assert!(landlock_abi().is_some());
        assert!(std::fs::read_dir("/proc").is_ok());
    }

    #[test]
    fn seccomp_needs_kill_process() {
        for (actions, level) in [
            (
                Some("kill_process kill_thread trap errno allow\n"),
                Level::Ok,
            ),
            (Some("kill trap errno allow\n"), Level::Warn),
            (None, Level::Warn),
        ] {
            assert_eq!(judge_seccomp(actions).level, level);
        }
    }
}
