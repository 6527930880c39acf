//! What CPUs this host can give a partition: KVM's list, asked for once, and what a template makes of
//! it. Used by whoever starts a VMM, which gets the finished list in its description: to ask takes
//! KVM up to half a millisecond, since it runs CPUID some hundred times.
#![forbid(unsafe_code)]

mod template;

use std::io;

use bulkhead_machine::cpu::Leaf;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

pub use template::Lacks;

/// What a guest's CPUs can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuTemplate {
    /// All that the host's KVM offers.
    #[default]
    Host,
    /// The same on every host: x86-64-v2 and what goes with it.
    V2,
    /// The same on every host with AVX2: x86-64-v3 and what goes with it.
    V3,
}

/// What KVM offers on this host, in the order of leaves.
#[derive(Clone, Debug)]
pub struct HostCpu(Vec<Leaf>);

impl HostCpu {
    /// Asks KVM.
    ///
    /// # Errors
    /// `/dev/kvm` does not open, or does not answer.
    pub fn ask() -> io::Result<Self> {
        let supported = Kvm::new()?.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        Ok(supported.as_slice().iter().map(leaf).collect())
    }

    /// All of it, which is what [`CpuTemplate::Host`] stands for.
    pub fn all(&self) -> Vec<Leaf> {
        self.0.clone()
    }

    /// The leaves that a guest's CPUs are made from.
    ///
    /// # Errors
    /// The host cannot be what `template` promises.
    pub fn offer(&self, template: CpuTemplate) -> Result<Vec<Leaf>, Lacks> {
        template::apply(&self.0, template)
    }
}

impl FromIterator<Leaf> for HostCpu {
    fn from_iter<I: IntoIterator<Item = Leaf>>(leaves: I) -> Self {
        let mut leaves: Vec<Leaf> = leaves.into_iter().collect();
        leaves.sort_by_key(Leaf::place);
        leaves.dedup_by_key(|leaf| leaf.place());
        Self(leaves)
    }
}

fn leaf(entry: &kvm_cpuid_entry2) -> Leaf {
    let has_subleaves = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    Leaf {
        function: entry.function,
        index: has_subleaves.then_some(entry.index),
        registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_come_in_order_and_once() {
        let leaf = |function, index, eax| Leaf {
            function,
            index,
            registers: [eax, 0, 0, 0],
        };
        let host = HostCpu::from_iter([
            leaf(0x8000_0000, None, 1),
            leaf(4, Some(1), 2),
            leaf(4, Some(0), 3),
            leaf(0x8000_0000, None, 4),
        ]);
        let order: Vec<u32> = host.all().iter().map(|leaf| leaf.registers[0]).collect();
        assert_eq!(order, [3, 2, 1]);
    }

    #[test]
    fn an_entry_without_subleaves_has_no_index() {
        let mut entry = kvm_cpuid_entry2 {
            function: 7,
            index: 2,
            eax: 1,
            ebx: 2,
            ecx: 3,
            edx: 4,
            ..kvm_cpuid_entry2::default()
        };
        assert_eq!(leaf(&entry).index, None);
        entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        assert_eq!(leaf(&entry).index, Some(2));
        assert_eq!(leaf(&entry).registers, [1, 2, 3, 4]);
    }
}
