//! The vault's file: what is in the clear, where the sealed parts lie, and the index that the key
//! opens. Everything here is read from a file that somebody else may have written.
//!
//! ```text
//!  0  8  BHVAULT1
//!  8  4  Argon2id: memory in KiB           numbers are little-endian
//! 12  4            passes
//! 16  4            lanes
//! 20 16            salt
//! 36 12  nonce of the index
//! 48  4  length of the sealed index
//! 52     the sealed index, then the sealed values in its order
//!    32  SHA-256 of all before: tells damage from a wrong key, and protects nothing
//! ```
//!
//! Sealed is AES-256-GCM: the ciphertext, then 16 bytes of tag. The index names every value with
//! its version, length and nonce, so a value fits its place alone: neither another name's nor an
//! older one's can stand there.

use crate::secret::{MAX_VALUE_BYTES, SecretName};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const MAGIC: [u8; 8] = *b"BHVAULT1";
/// Bytes that the index is bound to: all that the key is derived from.
pub(crate) const HEADER_BYTES: usize = 36;
const PREFIX_BYTES: usize = 52;
const CHECKSUM_BYTES: usize = 32;
/// Bytes that sealing adds.
pub(crate) const TAG_BYTES: usize = 16;
/// Most secrets of a vault.
pub(crate) const MAX_SECRETS: usize = 512;
/// Most bytes of the sealed index: each entry has a name of 64 bytes, and less than 256 others.
const MAX_INDEX_BYTES: usize = MAX_SECRETS * 320 + 256;
/// Most bytes of a vault.
pub(crate) const MAX_FILE_BYTES: usize =
    PREFIX_BYTES + MAX_INDEX_BYTES + MAX_SECRETS * (MAX_VALUE_BYTES + TAG_BYTES) + CHECKSUM_BYTES;

/// A nonce of AES-GCM; random, and never used twice.
pub(crate) type Nonce = [u8; 12];

/// What Argon2id costs whoever derives the key, and whoever guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// For passphrases: the second choice of RFC 9106, with one lane since we have one thread.
    pub(crate) const PASSPHRASE: Self = Self {
        memory_kib: 64 * 1024,
        passes: 3,
        lanes: 1,
    };
    /// For 32 random bytes, which nobody guesses at any cost.
    pub(crate) const RANDOM: Self = Self {
        memory_kib: 256,
        passes: 1,
        lanes: 1,
    };

    /// What a file may ask of us: at most 1 GiB, at most 4 GiB passed over.
    fn is_sane(self) -> bool {
        let passed = u64::from(self.memory_kib) * u64::from(self.passes);
        (1..=4).contains(&self.lanes)
            && (8 * self.lanes..=1024 * 1024).contains(&self.memory_kib)
            && (1..=16).contains(&self.passes)
            && passed <= 4 * 1024 * 1024
    }
}

/// What the key is derived from, beside what the operator brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) cost: Cost,
    pub(crate) salt: [u8; 16],
}

impl Header {
    /// As it stands in the file; the index is bound to it.
    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let Cost {
            memory_kib,
            passes,
            lanes,
        } = self.cost;
        let numbers = [memory_kib, passes, lanes].map(u32::to_le_bytes);
        let parts = MAGIC
            .iter()
            .chain(numbers.iter().flatten())
            .chain(&self.salt);
        bytes
            .iter_mut()
            .zip(parts)
            .for_each(|(to, from)| *to = *from);
        bytes
    }
}

/// A vault's file, still sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed<'a> {
    pub(crate) header: Header,
    pub(crate) index_nonce: Nonce,
    pub(crate) index: &'a [u8],
    /// All values, one behind the other.
    pub(crate) values: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes a file apart.
    ///
    /// # Errors
    /// What is wrong with it, as a clause.
    pub fn parse(file: &'a [u8]) -> Result<Self, &'static str> {
        let short = "it is too short";
        if file.len() > MAX_FILE_BYTES {
            return Err("it is too long");
        }
        let (rest, magic) = take::<8>(file).ok_or(short)?;
        if magic != MAGIC {
            return Err("it does not begin as one");
        }
        let (body, sum) = file.split_last_chunk::<CHECKSUM_BYTES>().ok_or(short)?;
        if Sha256::digest(body).as_slice() != sum {
            return Err("its checksum is another");
        }
        let (rest, memory_kib) = number(rest).ok_or(short)?;
        let (rest, passes) = number(rest).ok_or(short)?;
        let (rest, lanes) = number(rest).ok_or(short)?;
        let cost = Cost {
            memory_kib,
            passes,
            lanes,
        };
        if !cost.is_sane() {
            return Err("its key would cost more to derive than Bulkhead allows");
        }
        let (rest, salt) = take::<16>(rest).ok_or(short)?;
        let (rest, index_nonce) = take::<12>(rest).ok_or(short)?;
        let (rest, length) = number(rest).ok_or(short)?;
        let length = usize::try_from(length).map_err(|_| short)?;
        if !(TAG_BYTES..=MAX_INDEX_BYTES).contains(&length) {
            return Err("its index has an impossible length");
        }
        let content = rest.len().checked_sub(CHECKSUM_BYTES).ok_or(short)?;
        let (rest, _) = rest.split_at_checked(content).ok_or(short)?;
        let (index, values) = rest.split_at_checked(length).ok_or(short)?;
        Ok(Self {
            header: Header { cost, salt },
            index_nonce,
            index,
            values,
        })
    }

    /// What deriving the key costs.
    pub fn cost(&self) -> Cost {
        self.header.cost
    }

    /// The file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.index.len()).unwrap_or(u32::MAX);
        let mut file = Vec::with_capacity(
            PREFIX_BYTES + self.index.len() + self.values.len() + CHECKSUM_BYTES,
        );
        file.extend(self.header.to_bytes());
        file.extend(self.index_nonce);
        file.extend(length.to_le_bytes());
        file.extend(self.index);
        file.extend(self.values);
        let sum = Sha256::digest(&file);
        file.extend(sum);
        file
    }
}

/// What the sealed index says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Index {
    /// How often the vault has been changed.
    pub(crate) generation: u64,
    /// By name, each once.
    pub(crate) entries: Vec<IndexEntry>,
}

/// What the index says about one secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IndexEntry {
    pub(crate) name: SecretName,
    /// 1 when it was set, and one more with each rotation.
    pub(crate) version: u32,
    /// When it was set, in seconds since 1970.
    pub(crate) created: u64,
    /// When its value was.
    pub(crate) changed: u64,
    /// Length of the sealed value.
    pub(crate) length: u32,
    pub(crate) nonce: Nonce,
}

impl Index {
    /// Reads an opened index.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let index: Self = serde_json::from_slice(bytes).map_err(|_| "its index is no index")?;
        let mut pairs = index.entries.iter().zip(index.entries.iter().skip(1));
        if index.entries.len() > MAX_SECRETS || !pairs.all(|(a, b)| a.name < b.name) {
            return Err("its index is in disorder");
        }
        Ok(index)
    }

    /// Cuts the sealed values apart. Not a byte may be left.
    pub(crate) fn split<'a>(&self, mut values: &'a [u8]) -> Result<Vec<&'a [u8]>, &'static str> {
        let wrong = "its values do not have the lengths that its index says";
        let mut all = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let length = usize::try_from(entry.length).map_err(|_| wrong)?;
            let value;
            (value, values) = values.split_at_checked(length).ok_or(wrong)?;
            all.push(value);
        }
        match values.is_empty() {
            true => Ok(all),
            false => Err(wrong),
        }
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Option<(&[u8], [u8; N])> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    Some((rest, *taken))
}

fn number(bytes: &[u8]) -> Option<(&[u8], u32)> {
    let (rest, number) = take(bytes)?;
    Some((rest, u32::from_le_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_cost(memory_kib: u32, passes: u32, lanes: u32) -> Vec<u8> {
        let sealed = Sealed {
            header: Header {
                cost: Cost {
                    memory_kib,
                    passes,
                    lanes,
                },
                salt: [1; 16],
            },
            index_nonce: [2; 12],
            index: &[3; 20],
            values: &[4; 40],
        };
        sealed.to_bytes()
    }

    #[test]
    fn a_file_cannot_ask_for_more_than_is_sane() {
        for (memory_kib, passes, lanes, sane) in [
            (64 * 1024, 3, 1, true),
            (256, 1, 1, true),
            (8, 1, 1, true),
            (7, 1, 1, false),
            (32, 1, 4, true),
            (31, 1, 4, false),
            (1024 * 1024, 4, 4, true),
            (1024 * 1024, 5, 4, false),
            (1024 * 1024 + 1, 1, 1, false),
            (100 * 1024 * 1024, 1, 1, false),
            (u32::MAX, u32::MAX, u32::MAX, false),
            (64 * 1024, 0, 1, false),
            (64 * 1024, 17, 1, false),
            (64 * 1024, 3, 0, false),
            (64 * 1024, 3, 5, false),
        ] {
            let file = with_cost(memory_kib, passes, lanes);
            assert_eq!(
                Sealed::parse(&file).is_ok(),
                sane,
                "{memory_kib} {passes} {lanes}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_part_of_it_is_not() {
        let file = with_cost(256, 1, 1);
        let sealed = Sealed::parse(&file).unwrap();
        assert_eq!((sealed.index, sealed.values), (&[3; 20][..], &[4; 40][..]));
        assert_eq!(sealed.to_bytes(), file);
        for length in 0..file.len() {
            assert!(Sealed::parse(&file[..length]).is_err(), "{length}");
        }
        assert!(Sealed::parse(&vec![0; MAX_FILE_BYTES + 1]).is_err());
    }

    #[test]
    fn an_index_is_in_order_and_accounts_for_every_byte() {
        let entry = |name: &str, length| IndexEntry {
            name: name.parse().unwrap(),
            version: 1,
            created: 0,
            changed: 0,
            length,
            nonce: [0; 12],
        };
        let index = |entries| Index {
            generation: 1,
            entries,
        };
        let read = |index: &Index| Index::parse(&serde_json::to_vec(index).unwrap());
        let good = index(vec![entry("a", 3), entry("b", 2)]);
        assert_eq!(read(&good), Ok(good.clone()));
        assert_eq!(good.split(b"12345"), Ok(vec![&b"123"[..], b"45"]));
        assert!(good.split(b"123456").is_err() && good.split(b"1234").is_err());
        assert!(read(&index(vec![entry("b", 0), entry("a", 0)])).is_err());
        assert!(read(&index(vec![entry("a", 0), entry("a", 0)])).is_err());
        let many: Vec<_> = (0..=MAX_SECRETS)
            .map(|n| entry(&format!("s{n:04}"), 0))
            .collect();
        assert!(read(&index(many.clone())).is_err());
        assert!(read(&index(many[1..].to_vec())).is_ok());
    }

    #[test]
    fn the_largest_index_has_room() {
        let entry = |n| IndexEntry {
            name: format!("{n:064}").parse().unwrap(),
            version: u32::MAX,
            created: u64::MAX,
            changed: u64::MAX,
            length: u32::MAX,
            nonce: [255; 12],
        };
        let index = Index {
            generation: u64::MAX,
            entries: (0..MAX_SECRETS).map(entry).collect(),
        };
        assert!(serde_json::to_vec(&index).unwrap().len() + TAG_BYTES <= MAX_INDEX_BYTES);
    }

    proptest! {
        #[test]
        fn an_index_of_any_bytes_is_refused_or_splits_within_its_values(
            noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            lengths in prop::collection::vec(0..50_u32, 0..4), values in 0..150_usize
        ) {
            let entries = (0_u8..).zip(&lengths).map(|(n, length)| IndexEntry {
                name: format!("s{n}").parse().unwrap(),
                version: 1,
                created: 2,
                changed: 3,
                length: *length,
                nonce: [n; 12],
            });
            let index = Index { generation: 1, entries: entries.collect() };
            let mut bytes = serde_json::to_vec(&index).unwrap();
            for (at, byte) in &noise {
                *at.get_mut(&mut bytes[..]) = *byte;
            }
            let parsed = Index::parse(&bytes);
            prop_assert!(parsed.is_ok() || !noise.is_empty());
            let values = vec![0; values];
            if let Ok(parts) = parsed.and_then(|index| index.split(&values)) {
                prop_assert_eq!(parts.concat(), values);
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300), begin in any::<bool>()) {
            let mut file = if begin { with_cost(8, 1, 1) } else { Vec::new() };
            file.extend(bytes);
            if let Ok(sealed) = Sealed::parse(&file) {
                prop_assert_eq!(sealed.to_bytes(), file);
            }
        }
    }
}
