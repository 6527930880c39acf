//! The system calls that neither this process nor a program it starts has a use for, and that lead out
//! of a jail or into the depths of the host's kernel. They fail; other calls work, since programs of
//! any kind have to run.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Refused to all: what each would give.
pub(crate) const REFUSED: &[(i64, &str)] = &[
    (
        libc::SYS_socket,
        "sockets, those of other processes among them",
    ),
    (
        libc::SYS_io_uring_setup,
        "sockets and files past this filter",
    ),
    (
        libc::SYS_io_uring_enter,
        "sockets and files past this filter",
    ),
    (
        libc::SYS_io_uring_register,
        "sockets and files past this filter",
    ),
    (libc::SYS_ptrace, "other processes"),
    (libc::SYS_process_vm_readv, "other processes"),
    (libc::SYS_process_vm_writev, "other processes"),
    (libc::SYS_pidfd_getfd, "other processes"),
    (libc::SYS_kcmp, "other processes"),
    (libc::SYS_bpf, "the kernel"),
    (libc::SYS_perf_event_open, "the kernel"),
    (libc::SYS_userfaultfd, "the kernel"),
    (libc::SYS_add_key, "the kernel's keys"),
    (libc::SYS_request_key, "the kernel's keys"),
    (libc::SYS_keyctl, "the kernel's keys"),
    (libc::SYS_mount, "mounts"),
    (libc::SYS_umount2, "mounts"),
    (libc::SYS_pivot_root, "mounts"),
    (libc::SYS_chroot, "mounts"),
    (libc::SYS_move_mount, "mounts"),
    (libc::SYS_open_tree, "mounts"),
    (libc::SYS_fsopen, "mounts"),
    (libc::SYS_fsmount, "mounts"),
    (libc::SYS_fsconfig, "mounts"),
    (libc::SYS_fspick, "mounts"),
    (libc::SYS_mount_setattr, "mounts"),
    (libc::SYS_setns, "namespaces"),
    (libc::SYS_name_to_handle_at, "files by number"),
    (libc::SYS_open_by_handle_at, "files by number"),
    (libc::SYS_init_module, "modules"),
    (libc::SYS_finit_module, "modules"),
    (libc::SYS_delete_module, "modules"),
    (libc::SYS_kexec_load, "another kernel"),
    (libc::SYS_kexec_file_load, "another kernel"),
    (libc::SYS_reboot, "the host's end"),
    (libc::SYS_swapon, "the host's memory"),
    (libc::SYS_swapoff, "the host's memory"),
    (libc::SYS_acct, "the host's records"),
    (libc::SYS_syslog, "the host's records"),
    (libc::SYS_quotactl, "the host's disks"),
    (libc::SYS_iopl, "devices"),
    (libc::SYS_ioperm, "devices"),
    (libc::SYS_clock_settime, "the host's clock"),
    (libc::SYS_settimeofday, "the host's clock"),
    (libc::SYS_adjtimex, "the host's clock"),
    (libc::SYS_clock_adjtime, "the host's clock"),
    (libc::SYS_personality, "another ABI"),
    (libc::SYS_modify_ldt, "another ABI"),
];

/// What makes a namespace (`CLONE_NEW...`, sched.h).
const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP) as u64;

/// Has the calls above fail from here on, in this process and what it starts. Of `programs`, which make
/// no namespaces of their own, those too.
///
/// # Errors
/// The host refuses.
pub(crate) fn refuse(programs: bool) -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter(&another_abi())?;
    for filter in filters(programs)? {
        seccompiler::apply_filter(&filter)?;
    }
    Ok(())
}

fn filters(programs: bool) -> Result<Vec<BpfProgram>, BackendError> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = REFUSED
        .iter()
        .map(|(call, _)| (*call, Vec::new()))
        .collect();
    let mut absent = BTreeMap::new();
    if programs {
        refused.insert(libc::SYS_unshare, Vec::new());
        let mut namespaces = Vec::new();
        for bit in (0..u64::BITS)
            .map(|bit| 1 << bit)
            .filter(|bit| NAMESPACES & bit != 0)
        {
            let masked = SeccompCmpOp::MaskedEq(bit);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, masked, bit)?;
            namespaces.push(SeccompRule::new(vec![condition])?);
        }
        refused.insert(libc::SYS_clone, namespaces);
        // Its flags are in memory, where no filter looks. Without it the C library takes `clone`.
        absent.insert(libc::SYS_clone3, Vec::new());
    }
    let filter = |rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32| {
        let errno = SeccompAction::Errno(errno.unsigned_abs());
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64);
        filter.and_then(BpfProgram::try_from)
    };
    let mut filters = vec![filter(refused, libc::EPERM)?];
    if !absent.is_empty() {
        filters.push(filter(absent, libc::ENOSYS)?);
    }
    Ok(filters)
}

/// Kills whoever makes a call of the x32 ABI, whose numbers the lists above do not hold. Those of
/// 32-bit x86 are killed by the other filters, as calls of another machine.
fn another_abi() -> BpfProgram {
    use seccompiler::sock_filter;
    /// `__X32_SYSCALL_BIT`.
    const X32: u32 = 0x4000_0000;
    let instruction = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    vec![
        // The number, which comes first in `struct seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_KILL_PROCESS,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_name_each_call_once() {
        let mut calls: Vec<i64> = REFUSED.iter().map(|(call, _)| *call).collect();
        calls.sort_unstable();
        let count = calls.len();
        calls.dedup();
        assert_eq!(calls.len(), count);
        assert_eq!(filters(false).unwrap().len(), 1);
        assert_eq!(filters(true).unwrap().len(), 2);
    }
}
