//! What stepping has to know of the kernel's image: where it is entered, and which instructions end
//! an entry.

use std::collections::BTreeSet;
use std::path::Path;

use bulkhead_abi::machine::TIMER_VECTOR;
use elf::ElfBytes;
use elf::endian::LittleEndian;

use crate::error::Error;

/// By a page fault programs enter the kernel too, and on a KVM that interprets guest kernel mode by
/// every system call.
const PAGE_FAULT: u64 = 14;
/// Instructions by which the kernel leaves for user mode, or waits with interrupts on, as bytes, and
/// where in those bytes the instruction that ends the entry begins.
const ENDS: [(&[u8], u64); 3] = [
    (&[0x48, 0xcf], 0),       // iretq
    (&[0x48, 0x0f, 0x07], 0), // sysretq
    (&[0xfb, 0xf4], 1),       // sti; hlt
];

/// Addresses in the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Where `syscall` goes.
    pub(super) syscall: u64,
    /// Where page faults go.
    pub(super) page_fault: u64,
    /// Where the timer's interrupt goes.
    pub(super) timer: u64,
    /// Where long work looks for an urgent thread.
    pub(super) preemption: u64,
    /// Where an instruction stands that ends an entry, if it is executed there.
    ends: BTreeSet<u64>,
}

impl Image {
    /// Reads the image.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let file = std::fs::read(path).map_err(Error::io(format!("reading {}", path.display())))?;
        Self::parse(&file).ok_or_else(|| Error::Symbols(path.to_owned()))
    }

    fn parse(file: &[u8]) -> Option<Self> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).ok()?;
        let (symbols, names) = elf.symbol_table().ok()??;
        let address = |wanted| {
            let is_wanted = |name: u32| names.get(name as usize).is_ok_and(|name| name == wanted);
            let symbol = symbols.iter().find(|symbol| is_wanted(symbol.st_name))?;
            Some(symbol.st_value)
        };
        let stubs = address("interrupt_stubs")?;
        // One for each vector.
        let stub_bytes = (address("interrupt_stubs_end")? - stubs) / 256;
        let executable = elf.segments()?.iter().filter(|segment| {
            segment.p_type == elf::abi::PT_LOAD && segment.p_flags & elf::abi::PF_X != 0
        });
        let mut ends = BTreeSet::new();
        for segment in executable {
            let code = elf.segment_data(&segment).ok()?;
            for (bytes, offset) in ENDS {
                let places = code.windows(bytes.len()).enumerate();
                let found = places.filter(|(_, there)| *there == bytes);
                ends.extend(found.map(|(at, _)| segment.p_vaddr + at as u64 + offset));
            }
        }
        Some(Self {
            syscall: address("syscall_entry")?,
            page_fault: stubs + PAGE_FAULT * stub_bytes,
            timer: stubs + u64::from(TIMER_VECTOR) * stub_bytes,
            preemption: address("is_timer_due")?,
            ends,
        })
    }

    /// True where the instruction at `address` ends an entry.
    pub(super) fn is_end(&self, address: u64) -> bool {
        self.ends.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section's or segment's fields, one after another.
    fn words(values: &[u64]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    /// An image of one segment, whose code begins at 0x1000, with a symbol table.
    fn image(symbols: &[(&str, u64)]) -> Vec<u8> {
        let mut code = vec![0x90, 0x48, 0xcf, 0x90, 0xfb, 0xf4, 0x48, 0x0f, 0x07];
        code.resize(16, 0x90);
        let (mut table, mut names) = (vec![0; 24], vec![0]);
        for (name, value) in symbols {
            table.extend((names.len() as u32).to_le_bytes());
            table.extend([0x10, 0, 1, 0]);
            table.extend(words(&[*value, 0]));
            names.extend(name.bytes().chain([0]));
        }
        let code_at = 64 + 56;
        let table_at = code_at + code.len() as u64;
        let names_at = table_at + table.len() as u64;
        let sections_at = names_at + names.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        file.extend(words(&[0x1000, 64, sections_at]));
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 3, 0, 0, 0]);
        let length = code.len() as u64;
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        file.extend(words(&[code_at, 0x1000, 0x1000, length, length, 0x1000]));
        file.extend(code);
        file.extend(&table);
        file.extend(&names);
        file.extend([0; 64]);
        let mut section = |kind: u64, at, length: usize, link: u64, entry| {
            file.extend(words(&[
                kind << 32,
                0,
                0,
                at,
                length as u64,
                link,
                8,
                entry,
            ]));
        };
        section(2, table_at, table.len(), 2, 24);
        section(3, names_at, names.len(), 0, 0);
        file
    }

    #[test]
    fn entries_and_ends_are_found() {
        let file = image(&[
            ("interrupt_stubs", 0x2000),
            ("interrupt_stubs_end", 0x3000),
            ("syscall_entry", 0x1008),
            ("is_timer_due", 0x1002),
        ]);
        let image = Image::parse(&file).unwrap();
        assert_eq!(image.syscall, 0x1008);
        assert_eq!((image.page_fault, image.timer), (0x20e0, 0x2200));
        assert_eq!(image.preemption, 0x1002);
        let ends: Vec<u64> = (0x1000..0x1010).filter(|at| image.is_end(*at)).collect();
        assert_eq!(ends, [0x1001, 0x1005, 0x1006]);
    }

    #[test]
    fn an_image_without_the_symbols_is_refused() {
        assert_eq!(Image::parse(&image(&[("interrupt_stubs", 0x2000)])), None);
        assert_eq!(Image::parse(b"\x7fELF"), None);
    }
}
