//! What is made of descriptions, and that nothing in the tree has drifted from its own.

use std::process::Command;

use super::*;
use crate::process::output;

#[test]
fn nothing_has_drifted_from_the_description() {
    check(&Repo::find()).unwrap();
}

/// A description with the registers of the capability operations to come: several values in one
/// register, ten message words, `rbp` among them.
const MESSAGES: &str = r#"
faults = [{ name = "Nobody", doc = "Fine." }, { name = "Caller", doc = "The caller." }]
statuses = [
    { number = 0, name = "Ok", fault = "Nobody", doc = "Done." },
    { number = 1, name = "NotThere", fault = "Caller", doc = "Nobody is there." },
]
slots = [{ number = 1, name = "PEER", doc = "Somebody." }]
rights = [{ bit = 0, name = "READ", doc = "Readable." }]

[[convention]]
name = "message"
doc = "Ten words in registers."
number = "rax:0-7"
arguments = ["rdi", "rsi", "rdx", "r8", "r9", "r10", "r12", "r13", "r14", "r15", "rbx", "rbp"]
status = "rax"
results = ["rdi", "rsi", "rdx", "r8", "r9", "r10", "r12", "r13", "r14", "r15", "rbx", "rbp"]
lost = ["rcx", "r11"]

[[operation]]
number = 200
name = "CALL"
convention = "message"
invokes = "Endpoint"
doc = "Send and wait for the answer."
arguments = [
    { name = "endpoint", is = "handle" },
    { name = "reply", is = "handle" },
    { name = "length", is = "number", at = "rax:8-15" },
    { name = "capabilities", is = "number", at = "rax:16-17" },
    { name = "label", is = "number", at = "rax:32-63" },
    { name = "a", is = "number" },
    { name = "b", is = "number" },
    { name = "c", is = "number" },
    { name = "d", is = "number" },
    { name = "e", is = "number" },
    { name = "f", is = "number" },
    { name = "g", is = "number" },
    { name = "h", is = "number" },
    { name = "i", is = "number" },
    { name = "j", is = "number" },
]
results = [
    { name = "badge", is = "number" },
    { name = "got_length", is = "number", at = "rsi:8-15" },
    { name = "got_label", is = "number", at = "rsi:32-63" },
    { name = "got_a", is = "number", at = "rdx" },
    { name = "got_j", is = "number", at = "rbp" },
]
errors = ["NotThere"]

[[module]]
name = "layout"
doc = "Addresses."
header = true
constants = [{ name = "PAGE_SIZE", type = "u64", value = 4096, doc = "4 KiB." }]

[[module.struct]]
name = "PhysRange"
doc = "A range."
fields = [{ name = "start", type = "u64", doc = "See [`PAGE_SIZE`]." }, { name = "len", type = "u64" }]
"#;

/// Compiles C for this machine and runs it; what it prints.
fn run_c(header: &str, program: &str, level: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("bulkhead")).unwrap();
    fs::write(at("bulkhead/abi.h"), header).unwrap();
    fs::write(at("program.c"), program).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", level, "-I"])
        .arg(dir.path());
    output(cc.arg(at("program.c")).arg("-o").arg(at("program"))).unwrap();
    output(&mut Command::new(at("program"))).unwrap()
}

#[test]
fn the_header_compiles_alone() {
    let header = fs::read_to_string(Repo::find().root().join(HEADER)).unwrap();
    let program = "#include <bulkhead/abi.h>\nint main(void) { return 0; }\n";
    for level in ["-O0", "-O2"] {
        run_c(&header, program, level);
    }
}

/// A Linux host refuses the number and keeps all other registers: so words have to come back from
/// where they were put, and the caller's own registers have to survive.
#[test]
fn a_stub_puts_each_value_in_its_place_and_takes_it_from_there() {
    let description = Description::parse(MESSAGES).unwrap();
    let header = header::header(&description).unwrap();
    let program = r#"
        #include <bulkhead/abi.h>
        #include <stdio.h>
        __attribute__((noinline)) static uint64_t call(uint64_t base)
        {
            uint64_t badge, length, label, a, j;
            uint64_t message = UINT64_C(0x7700002a00);
            uint64_t status = bulkhead_call(base, message, 0x1ff, 7, UINT64_C(0x1fffffff0),
                base + 1, base + 2, base + 3, base + 4, base + 5, base + 6, base + 7, base + 8,
                base + 9, base + 10, &badge, &length, &label, &a, &j);
            printf("%lld %llx %llx %llx %llx %llx\n", (long long)status, (unsigned long long)badge,
                (unsigned long long)length, (unsigned long long)label, (unsigned long long)a,
                (unsigned long long)j);
            return status;
        }
        int main(void)
        {
            volatile uint64_t local = 5;
            call(0x100);
            return local == 5 ? 0 : 1;
        }
    "#;
    for level in ["-O0", "-O2"] {
        // ENOSYS of the host; a message of length 42 and label 0x77 in rsi.
        assert_eq!(
            run_c(&header, program, level),
            "-38 100 2a 77 101 10a\n",
            "{level}"
        );
    }
    let packed = [
        "register uint64_t r_rax __asm__(\"rax\") = (BULKHEAD_OP_CALL & UINT64_C(0xff)) << 0",
        "(length & UINT64_C(0xff)) << 8",
        "(capabilities & UINT64_C(0x3)) << 16",
        "(label & UINT64_C(0xffffffff)) << 32",
    ];
    for part in packed {
        assert!(header.contains(part), "no {part} in\n{header}");
    }
}

#[test]
fn the_decoders_table_says_each_place() {
    let modules = rust::modules(&Description::parse(MESSAGES).unwrap()).unwrap();
    let (_, table) = modules
        .iter()
        .find(|(name, _)| name == "operations.rs")
        .unwrap();
    for part in [
        "number_place: Place::bits(Register::Rax, 0, 8)",
        "place: Place::bits(Register::Rax, 32, 32)",
        "place: Place::whole(Register::Rbp)",
        "errors: &[Status::NotThere]",
    ] {
        assert!(table.contains(part), "no {part} in\n{table}");
    }
}

#[test]
fn descriptions_that_break_a_rule_are_refused_with_its_name() {
    assert!(Description::parse(MESSAGES).is_ok());
    for (from, to, wanted) in [
        (
            "number = 200",
            "number = 256",
            "CALL: its number does not fit its place",
        ),
        (
            "at = \"rax:8-15\"",
            "at = \"rax:0-15\"",
            "CALL: two values lie in rax:0-7",
        ),
        (
            "at = \"rax:16-17\"",
            "at = \"rdi\"",
            "CALL: two values lie in rdi",
        ),
        (
            "at = \"rdx\"",
            "at = \"rcx\"",
            "got_a: its convention returns nothing there",
        ),
        (
            "number = \"rax:0-7\"",
            "number = \"eax\"",
            "eax is no place",
        ),
        (
            "number = \"rax:0-7\"",
            "number = \"rdi:0-7\"",
            "message: two values lie in rdi:0-7",
        ),
        (
            "lost = [\"rcx\", \"r11\"]",
            "lost = [\"rcx\", \"rdx\"]",
            "message: a result lies in a lost register",
        ),
        (
            "errors = [\"NotThere\"]",
            "errors = [\"Gone\"]",
            "CALL: there is no error Gone",
        ),
        (
            "errors = [\"NotThere\"]",
            "errors = [\"Ok\"]",
            "CALL: there is no error Ok",
        ),
        (
            "fault = \"Caller\"",
            "fault = \"Kernel\"",
            "NotThere: there is no fault Kernel",
        ),
        (
            "number = 1, name = \"NotThere\"",
            "number = 0, name = \"NotThere\"",
            "0: two of a kind: status",
        ),
        (
            "number = 0, name = \"Ok\"",
            "number = 2, name = \"Ok\"",
            "the first has to be Ok",
        ),
        (
            "convention = \"message\"",
            "convention = \"letter\"",
            "there is no convention letter",
        ),
        (
            "name = \"endpoint\", is = \"handle\"",
            "name = \"endpoint\", is = \"number\"",
            "the invoked handle",
        ),
        (
            "is = \"handle\"",
            "is = \"pointer\"",
            "unknown variant `pointer`",
        ),
        ("name = \"j\"", "name = \"i\"", "i: two of a kind: argument"),
        (
            "value = 4096",
            "value = 4096, bit = 12",
            "PAGE_SIZE: it needs a value or a bit",
        ),
        (
            "\"start\", type = \"u64\"",
            "\"start\", type = \"u32\"",
            "PhysRange.len: there is a hole before it",
        ),
        (
            "\"len\", type = \"u64\"",
            "\"len\", type = \"u32\"",
            "PhysRange: there is a hole at its end",
        ),
        (
            "\"len\", type = \"u64\"",
            "\"len\", type = \"u128\"",
            "PhysRange.len: u128 is no known type",
        ),
        (
            "header = true",
            "header = true\ncolour = 1",
            "unknown field `colour`",
        ),
    ] {
        assert!(MESSAGES.contains(from), "{from}");
        let error = Description::parse(&MESSAGES.replacen(from, to, 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted), "{to}: {error}");
    }
    let mut many = MESSAGES.replace("errors = [\"NotThere\"]", "");
    many = many.replace(
        "name = \"j\", is = \"number\" },",
        "name = \"j\", is = \"number\" },\n{ name = \"k\", is = \"number\" },",
    );
    let error = Description::parse(&many).unwrap_err().to_string();
    assert!(error.contains("CALL: there is no place for k"), "{error}");
}

#[test]
fn a_page_without_a_place_for_a_table_is_refused() {
    let description = Description::parse(MESSAGES).unwrap();
    let error = docs::fill("# A page\n", &description)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no place for the table abi conventions"),
        "{error}"
    );
}
