//! The kernel image, disassembled: it must run on a KVM that interprets guest kernel mode, whose
//! emulator knows a subset of the instructions.

use std::process::Command;

use super::summary::Counts;
use crate::failure::Result;
use crate::process::{output, require};
use crate::repo::Repo;

/// Mnemonics (objdump's, AT&T suffixes cut) that fail or silently do something else when KVM
/// interprets them; a trailing `*` stands for any ending. Measured on such a host.
const FORBIDDEN: [&str; 36] = [
    "adcx",
    "adox",
    "andn",
    "bextr",
    "blsi",
    "blsmsk",
    "blsr",
    "bzhi",
    "clac",
    "clwb",
    "cmpxchg16b",
    "crc32*",
    "f[x87]",
    "invpcid",
    "lar",
    "ldmxcsr",
    "lzcnt",
    "monitor*",
    "movd",
    "movq[xmm]",
    "movsd[xmm]",
    "mulx",
    "mwait*",
    "pdep",
    "pext",
    "popcnt",
    "pxor",
    "rdpid",
    "rdtscp",
    "stac",
    "stmxcsr",
    "tzcnt",
    "verr",
    "verw",
    "xorps",
    "xsave*",
];
/// The same, for whole families by prefix. `v...` are the VEX forms; `verr` and `verw` are above.
const FORBIDDEN_PREFIXES: [&str; 5] = ["vmov", "vp", "xrstor", "xgetbv", "vzero"];

/// Disassembles the built kernel.
pub(crate) fn check(repo: &Repo) -> Result<Counts> {
    let kernel = repo.dist().join("lib/bulkhead/kernel");
    let mut objdump = Command::new(require("objdump", "binutils")?);
    let text = output(objdump.args(["-d", "--no-show-raw-insn"]).arg(&kernel))?;
    let found = offenders(&text);
    Ok(if !text.contains("iretq") {
        Counts::failed("the disassembly has no iretq: this is not the kernel")
    } else if found.is_empty() {
        Counts::passed()
    } else {
        Counts::failed(format!("cannot be interpreted:\n{}", found.join("\n")))
    })
}

/// The lines of a disassembly with an instruction that must not be there.
fn offenders(disassembly: &str) -> Vec<String> {
    disassembly
        .lines()
        .filter(|line| {
            // `  addr:<tab>mnemonic operands`
            let Some((_, instruction)) = line.split_once(":\t") else {
                return false;
            };
            let mut words = instruction.split_whitespace().skip_while(|word| {
                ["lock", "rep", "repz", "repnz", "data16", "cs", "notrack"].contains(word)
            });
            let mnemonic = words.next().unwrap_or_default();
            let operands: String = words.collect();
            forbidden(mnemonic, &operands)
        })
        .map(str::to_owned)
        .collect()
}

fn forbidden(mnemonic: &str, operands: &str) -> bool {
    let xmm = operands.contains("%xmm");
    FORBIDDEN_PREFIXES.iter().any(|p| mnemonic.starts_with(p))
        || FORBIDDEN.iter().any(|pattern| match *pattern {
            "f[x87]" => {
                mnemonic.starts_with('f')
                    && !["fxsave", "fxrstor"]
                        .iter()
                        .any(|ok| mnemonic.starts_with(ok))
            }
            "movq[xmm]" => mnemonic == "movq" && xmm,
            "movsd[xmm]" => mnemonic == "movsd" && xmm,
            pattern => match pattern.strip_suffix('*') {
                Some(prefix) => mnemonic.starts_with(prefix),
                None => {
                    mnemonic == pattern
                        || mnemonic
                            .strip_suffix(['b', 'w', 'l', 'q'])
                            .is_some_and(|cut| cut == pattern)
                }
            },
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_code_passes() {
        for line in [
            "ffffffff80200000:\tmov    %rax,%rbx",
            "ffffffff80200000:\tmovq   $0x1,0x8(%rsp)",
            "ffffffff80200000:\tmovsd",
            "ffffffff80200000:\tfxsave64 (%rax)",
            "ffffffff80200000:\tlock cmpxchg %rcx,(%rdx)",
            "ffffffff80200000:\trep movsb %ds:(%rsi),%es:(%rdi)",
            "ffffffff80200000:\tint3",
            "0000 <popcnt>:",
        ] {
            assert!(offenders(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_interpreted_is_found() {
        for line in [
            "1:\tpopcnt %rax,%rbx",
            "1:\tlock cmpxchg16b (%rdi)",
            "1:\ttzcnt %eax,%eax",
            "1:\tmovq   %xmm0,%rax",
            "1:\tmovsd  (%rax),%xmm1",
            "1:\tfldl   (%rax)",
            "1:\tfwait",
            "1:\txsaveopt (%rax)",
            "1:\txrstor (%rax)",
            "1:\tvmovups %ymm0,(%rax)",
            "1:\tvpxor  %xmm0,%xmm0,%xmm0",
            "1:\tstac",
            "1:\tcrc32q %rax,%rbx",
        ] {
            assert_eq!(offenders(line).len(), 1, "{line}");
        }
    }
}
