//! vhost and VFIO: what networks at full speed and device passthrough are built from.

use super::Finding;

/// Looks for the device nodes.
pub(super) fn inspect() -> [Finding; 2] {
    let there: Vec<_> = ["vhost-net", "vhost-vsock"]
        .into_iter()
        .filter(|name| std::fs::exists(format!("/dev/{name}")).unwrap_or(false))
        .collect();
    let groups = std::fs::read_dir("/sys/kernel/iommu_groups").map_or(0, Iterator::count);
    let vfio = std::fs::exists("/dev/vfio/vfio").unwrap_or(false);
    [judge_vhost(&there), judge_vfio(groups, vfio)]
}

fn judge_vhost(there: &[&str]) -> Finding {
    match there {
        [] => Finding::warn(
            "vhost",
            "no vhost devices",
            "modprobe vhost_net vhost_vsock",
        ),
        some => Finding::ok("vhost", some.join(", ")),
    }
}

fn judge_vfio(groups: usize, vfio: bool) -> Finding {
    let id = "vfio";
    match (groups, vfio) {
        (0, _) => Finding::warn(
            id,
            "no IOMMU groups: no device can be passed through",
            "switch on the IOMMU in the firmware (VT-d, AMD-Vi) and boot with iommu=on",
        ),
        (_, false) => Finding::warn(
            id,
            format!("{groups} IOMMU groups, no VFIO"),
            "modprobe vfio-pci",
        ),
        (_, true) => Finding::ok(id, format!("{groups} IOMMU groups")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Level;

    #[test]
    fn passthrough_needs_groups_and_the_driver() {
        for (groups, vfio, level) in [
            (0, false, Level::Warn),
            (0, true, Level::Warn),
            (4, false, Level::Warn),
            (4, true, Level::Ok),
        ] {
            assert_eq!(judge_vfio(groups, vfio).level, level);
        }
    }

    #[test]
    fn vhost_names_what_is_there() {
        assert_eq!(judge_vhost(&[]).level, Level::Warn);
        assert_eq!(
            judge_vhost(&["vhost-net", "vhost-vsock"]).what,
            "vhost-net, vhost-vsock"
        );
    }
}
