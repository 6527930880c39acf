//! The Merkle tree over all records: RFC 6962 (and RFC 9162), section 2.1, with SHA-256. A leaf and a
//! node are hashed in domains of their own, so that neither can stand for the other.

use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Most hashes of a proof, and most peaks of a tree: a size is 64 bits.
pub const MAX_HASHES: usize = 64;

/// The hash of a leaf.
pub fn leaf(data: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0]);
    hasher.update(data);
    hasher.finalize().into()
}

/// The hash of a node above two others.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(left);
    bytes[33..].copy_from_slice(right);
    Sha256::digest(bytes).into()
}

/// What has to be known of a tree to add leaves to it: the roots of its perfect subtrees, the
/// largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// A tree of `size` leaves with these peaks; nothing where their number is not that of such a
    /// tree.
    pub fn new(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (peaks.len() == Self::peaks_of(size)).then_some(Self { size, peaks })
    }

    /// How many peaks a tree of `size` leaves has.
    pub fn peaks_of(size: u64) -> usize {
        size.count_ones() as usize
    }

    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// See [`Frontier`].
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Adds a leaf, by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The tree's root.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        match peaks.next() {
            Some(last) => peaks.fold(*last, |right, left| node(left, &right)),
            None => Sha256::digest([]).into(),
        }
    }
}

/// The root over `leaves`.
pub fn root(leaves: &[Hash]) -> Hash {
    let mut tree = Frontier::default();
    leaves.iter().for_each(|leaf| tree.push(*leaf));
    tree.root()
}

/// Proves that the leaf at `index` is one of `leaves`; nothing where there is no such leaf.
pub fn prove(mut leaves: &[Hash], mut index: usize) -> Option<Vec<Hash>> {
    if index >= leaves.len() {
        return None;
    }
    let mut proof = Vec::new();
    while leaves.len() > 1 {
        // The largest power of two below their number.
        let half = 1 << (usize::BITS - 1 - (leaves.len() - 1).leading_zeros());
        let (left, right) = leaves.split_at(half);
        if index < half {
            proof.push(root(right));
            leaves = left;
        } else {
            proof.push(root(left));
            leaves = right;
            index -= half;
        }
    }
    proof.reverse();
    Some(proof)
}

/// The root of a tree of `size` leaves in which `leaf` is at `index`, if `proof` says so; nothing
/// where it cannot be the proof of such a leaf (RFC 9162, section 2.1.3.2).
pub fn root_by_proof(leaf: Hash, index: u64, size: u64, proof: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut node_index, mut last) = (index, size - 1);
    let mut hash = leaf;
    for sibling in proof {
        if last == 0 {
            return None;
        }
        if node_index & 1 == 1 || node_index == last {
            hash = node(sibling, &hash);
            // Up to where there is a sibling on the left.
            let levels = node_index.trailing_zeros().min(63);
            node_index >>= levels;
            last >>= levels;
        } else {
            hash = node(&hash, sibling);
        }
        node_index >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use ct_merkle::{InclusionProof, RootHash};
    use proptest::prelude::*;

    fn hex(hash: Hash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The definition of RFC 6962, section 2.1, word for word.
    fn naive(leaves: &[Vec<u8>]) -> Hash {
        match leaves.len() {
            0 => Sha256::digest([]).into(),
            1 => leaf(&leaves[0]),
            n => {
                let k = n.next_power_of_two() / 2;
                node(&naive(&leaves[..k]), &naive(&leaves[k..]))
            }
        }
    }

    /// Section 2.1.1.
    fn naive_path(m: usize, leaves: &[Vec<u8>]) -> Vec<Hash> {
        let n = leaves.len();
        if n == 1 {
            return Vec::new();
        }
        let k = n.next_power_of_two() / 2;
        let (mut path, other) = match m < k {
            true => (naive_path(m, &leaves[..k]), naive(&leaves[k..])),
            false => (naive_path(m - k, &leaves[k..]), naive(&leaves[..k])),
        };
        path.push(other);
        path
    }

    /// The leaves and roots that the reference implementations of certificate transparency test with.
    #[test]
    fn the_known_trees_have_the_known_roots() {
        let leaves: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let mut tree = Frontier::default();
        assert_eq!(hex(tree.root()), empty);
        for (data, root) in leaves.into_iter().zip(roots) {
            tree.push(leaf(data));
            assert_eq!(hex(tree.root()), root);
        }
        let hashes: Vec<Hash> = leaves.into_iter().map(leaf).collect();
        // Audit paths of the same tests: (index, size) and the hashes.
        let path = |index, size: usize| {
            let proof = prove(&hashes[..size], index).unwrap();
            proof.into_iter().map(hex).collect::<Vec<_>>()
        };
        assert!(path(0, 1).is_empty());
        assert_eq!(
            path(0, 8),
            [
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ]
        );
        assert_eq!(
            path(2, 3),
            ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]
        );
    }

    proptest! {
        #[test]
        fn trees_and_proofs_are_those_of_the_definition(
            leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..70),
            at in any::<prop::sample::Index>(),
            other in any::<prop::sample::Index>(),
        ) {
            let hashes: Vec<Hash> = leaves.iter().map(|data| leaf(data)).collect();
            prop_assert_eq!(root(&hashes), naive(&leaves));
            let index = at.index(leaves.len());
            let size = leaves.len() as u64;
            let proof = prove(&hashes, index).unwrap();
            prop_assert_eq!(&proof, &naive_path(index, &leaves));
            let root = root(&hashes);
            let by = |leaf, index, size, proof: &[Hash]| root_by_proof(leaf, index, size, proof);
            prop_assert_eq!(by(hashes[index], index as u64, size, &proof), Some(root));
            // Another place, another leaf, one hash more or less prove nothing.
            let elsewhere = other.index(leaves.len());
            if elsewhere != index {
                prop_assert_ne!(by(hashes[index], elsewhere as u64, size, &proof), Some(root));
            }
            prop_assert_ne!(by(leaf(b"no leaf of this tree, too long"), index as u64, size, &proof), Some(root));
            let mut longer = proof.clone();
            longer.push([0; 32]);
            prop_assert_ne!(by(hashes[index], index as u64, size, &longer), Some(root));
            if let Some((_, shorter)) = proof.split_last() {
                prop_assert_ne!(by(hashes[index], index as u64, size, shorter), Some(root));
            }
            // An implementation that is not ours agrees.
            let mut theirs = MemoryBackedTree::<Sha256, Vec<u8>>::new();
            leaves.iter().for_each(|data| theirs.push(data.clone()));
            let of_theirs = theirs.root();
            prop_assert_eq!(of_theirs.as_bytes().as_slice(), &root);
            let theirs = RootHash::<Sha256>::new(root.into(), size);
            let proof = InclusionProof::from_bytes(proof.concat());
            prop_assert!(theirs.verify_inclusion(&leaves[index], index as u64, &proof).is_ok());
        }

        #[test]
        fn nonsense_is_no_proof_and_no_panic(
            index in any::<u64>(),
            size in any::<u64>(),
            proof in prop::collection::vec(any::<Hash>(), 0..70),
        ) {
            let _ = root_by_proof([0; 32], index, size, &proof);
            prop_assert_eq!(root_by_proof([0; 32], size, size, &proof), None);
        }
    }
}
