//! `/dev/kvm`: is it there, may we use it, does it offer what the VMM needs?

use std::io;

use kvm_ioctls::{Cap, Kvm};

use super::{Finding, read};

const ID: &str = "kvm-device";
const DEVICE: &str = "/dev/kvm";
/// The only version there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What the VMM uses beyond the basic API.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
];

/// What was found at [`DEVICE`].
#[derive(Debug)]
enum Device {
    /// It opens; its version, and the needed capabilities that it lacks.
    Open {
        version: i32,
        lacks: Vec<&'static str>,
    },
    /// It does not open.
    Closed(io::ErrorKind),
}

/// The findings on the device, and whether partitions can use it.
pub(super) fn inspect() -> (Vec<Finding>, bool) {
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let finding = judge(&open(), &cpuinfo);
    let usable = finding.level == super::Level::Ok;
    (vec![finding], usable)
}

/// Whether partitions can use the device.
pub(super) fn usable() -> bool {
    matches!(open(), Device::Open { version: API_VERSION, lacks } if lacks.is_empty())
}

fn open() -> Device {
    match Kvm::new() {
        Err(errno) => Device::Closed(io::Error::from_raw_os_error(errno.errno()).kind()),
        Ok(kvm) => Device::Open {
            version: kvm.get_api_version(),
            lacks: (NEEDED.into_iter())
                .filter(|(cap, _)| !kvm.check_extension(*cap))
                .map(|(_, name)| name)
                .collect(),
        },
    }
}

fn judge(device: &Device, cpuinfo: &str) -> Finding {
    match device {
        Device::Open {
            version: API_VERSION,
            lacks,
        } if lacks.is_empty() => {
            Finding::ok(ID, format!("{DEVICE} opens, API version {API_VERSION}"))
        }
        Device::Open {
            version: API_VERSION,
            lacks,
        } => Finding::fail(
            ID,
            format!("{DEVICE} lacks {}", lacks.join(", ")),
            "use a newer host kernel",
        ),
        Device::Open { version, .. } => Finding::fail(
            ID,
            format!("{DEVICE} speaks API version {version}, not {API_VERSION}"),
            "use a newer host kernel",
        ),
        Device::Closed(io::ErrorKind::PermissionDenied) => Finding::fail(
            ID,
            format!("no permission to open {DEVICE}"),
            "`sudo usermod -aG kvm $USER`, then log in again",
        ),
        Device::Closed(io::ErrorKind::NotFound) => {
            let words = || cpuinfo.split_whitespace();
            let remedy = if words().any(|word| word == "svm") {
                "`sudo modprobe kvm-amd`"
            } else if words().any(|word| word == "vmx") {
                "`sudo modprobe kvm-intel`"
            } else {
                "switch on (nested) virtualization"
            };
            Finding::fail(ID, format!("no {DEVICE}"), remedy)
        }
        Device::Closed(kind) => Finding::fail(
            ID,
            format!("{DEVICE} does not open: {kind}"),
            "look at the kernel's log for kvm",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Level;

    #[test]
    fn each_fault_has_its_remedy() {
        let open = |version, lacks: &[&'static str]| Device::Open {
            version,
            lacks: lacks.to_vec(),
        };
        let closed = Device::Closed;
        for (device, cpuinfo, remedy) in [
            (open(12, &[]), "", None),
            (open(12, &["KVM_CAP_IRQFD"]), "", Some("newer host kernel")),
            (open(11, &[]), "", Some("newer host kernel")),
            (
                closed(io::ErrorKind::PermissionDenied),
                "svm",
                Some("usermod -aG kvm"),
            ),
            (
                closed(io::ErrorKind::NotFound),
                "flags: svm",
                Some("kvm-amd"),
            ),
            (
                closed(io::ErrorKind::NotFound),
                "flags: vmx",
                Some("kvm-intel"),
            ),
            (
                closed(io::ErrorKind::NotFound),
                "flags: fpu",
                Some("nested"),
            ),
            (
                closed(io::ErrorKind::ResourceBusy),
                "",
                Some("kernel's log"),
            ),
        ] {
            let finding = judge(&device, cpuinfo);
            let level = if remedy.is_some() {
                Level::Fail
            } else {
                Level::Ok
            };
            assert_eq!(finding.level, level, "{device:?}");
            let told = finding.remedy.unwrap_or_default();
            assert!(told.contains(remedy.unwrap_or("")), "{device:?}: {told}");
        }
    }
}
