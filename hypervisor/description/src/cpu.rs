//! What CPUID tells a guest, as the supervisor hands it over: what all its CPUs have in common. Which
//! of them a CPU is, and what the machine lacks, the VMM fills in.

use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Room for the lists that there are, so that reading one takes memory once.
const USUAL_LEAVES: usize = 64;

/// What CPUID answers for one leaf. In JSON an array, since there are some fifty of them and every
/// start reads them: `[function, index or null, [eax, ebx, ecx, edx]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Tuple", into = "Tuple")]
pub struct Leaf {
    /// EAX of the question.
    pub function: u32,
    /// ECX of the question, for leaves that have subleaves.
    pub index: Option<u32>,
    /// EAX, EBX, ECX and EDX of the answer.
    pub registers: [u32; 4],
}

type Tuple = (u32, Option<u32>, [u32; 4]);

impl Leaf {
    /// What it is found by. A list is in the order of places, and has each once.
    pub fn place(&self) -> (u32, Option<u32>) {
        (self.function, self.index)
    }
}

impl From<Tuple> for Leaf {
    fn from((function, index, registers): Tuple) -> Self {
        Self {
            function,
            index,
            registers,
        }
    }
}

impl From<Leaf> for Tuple {
    fn from(leaf: Leaf) -> Self {
        (leaf.function, leaf.index, leaf.registers)
    }
}

/// Reads a list.
pub(crate) fn leaves<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Leaf>, D::Error> {
    struct List;

    impl<'de> Visitor<'de> for List {
        type Value = Vec<Leaf>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("a list of cpuid leaves")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<Leaf>, A::Error> {
            let mut leaves = Vec::with_capacity(USUAL_LEAVES);
            while let Some(leaf) = from.next_element()? {
                leaves.push(leaf);
            }
            Ok(leaves)
        }
    }

    from.deserialize_seq(List)
}
