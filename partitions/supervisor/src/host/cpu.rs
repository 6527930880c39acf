//! What the CPU says about hardware virtualization. Told for orientation only: what KVM can do is
//! measured, see [`super::guest_mode`].

use super::{Finding, read};

const ID: &str = "cpu-virtualization";

/// Reads the CPU's flags.
pub(super) fn inspect() -> Finding {
    judge(&read("/proc/cpuinfo").unwrap_or_default())
}

/// Judges the text of `/proc/cpuinfo`.
fn judge(cpuinfo: &str) -> Finding {
    let has = |wanted: &str| {
        (cpuinfo.lines())
            .find_map(|line| line.strip_prefix("flags"))
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == wanted))
    };
    match (has("svm"), has("vmx")) {
        (true, _) => Finding::ok(ID, "the CPU offers AMD SVM"),
        (_, true) => Finding::ok(ID, "the CPU offers Intel VMX"),
        (false, false) => Finding::warn(
            ID,
            "the CPU shows neither SVM nor VMX",
            "switch on virtualization in the firmware, or nested virtualization in the hypervisor \
             around this machine",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Level;

    #[test]
    fn flags_are_whole_words() {
        for (cpuinfo, level) in [
            ("flags\t\t: fpu svm lm\n", Level::Ok),
            ("processor: 0\nflags\t\t: fpu vmx\n", Level::Ok),
            ("flags\t\t: fpu svm_lock vmxnet\n", Level::Warn),
            ("bugs\t\t: svm\n", Level::Warn),
            ("vmx flags\t: vnmi\nflags\t: fpu\n", Level::Warn),
            ("", Level::Warn),
        ] {
            assert_eq!(judge(cpuinfo).level, level, "{cpuinfo:?}");
        }
    }
}
