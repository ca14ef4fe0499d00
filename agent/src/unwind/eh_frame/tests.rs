//! Rows of hand-made files, of real ones beside other readers of them, and of hostile ones.

use std::{fs, process::Command};

use framehop::{
    ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder,
    x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64},
};
use hotspan_abi::unwind::{
    BASE_FIRST_SCRATCH, BASE_FP, BASE_SP, FP_AT_FP, RA_AT_CFA, Rule, WideRule,
};
use hotspan_ebpf::{arch::X86_64, unwind::Registers};
use object::{Object, ObjectSection};

use super::*;
use crate::unwind::{
    Arch, Reason, chains,
    readelf::{
        self,
        Agreement::{Different, OtherRegister},
    },
    show::Shown,
    table,
};

/// Program headers, section names and the like come before this; text is from here on.
const TEXT: u64 = 0x1000;
const TEXT_BYTES: u64 = 0x3000;

/// A section of unwind information, entry by entry.
#[derive(Clone, Default)]
struct Entries(Vec<u8>);

impl Entries {
    /// CFA = rsp + 8, return address at CFA - 8, code factor 1, data factor -8.
    const INITIAL: &[u8] = b"\x0c\x07\x08\x90\x01";

    fn entry(mut self, body: &[u8]) -> Self {
        self.0.extend((body.len() as u32).to_le_bytes());
        self.0.extend(body);
        self
    }

    fn cie(self, augmentation: &[u8], program: &[u8]) -> Self {
        let head: [&[u8]; 5] = [&[0; 4], &[1], augmentation, b"\0\x01\x78\x10", program];
        self.entry(&head.concat())
    }

    /// A function that belongs to the CIE at the section's start.
    fn function(self, start: u64, len: u64, program: &[u8]) -> Self {
        let cie = self.0.len() as u32 + 4;
        let head: [&[u8]; 4] = [
            &cie.to_le_bytes(),
            &start.to_le_bytes(),
            &len.to_le_bytes(),
            program,
        ];
        self.entry(&head.concat())
    }

    /// The usual CIE.
    fn new() -> Self {
        Self::default().cie(b"", Self::INITIAL)
    }
}

/// An executable with these sections, whose text is zeros but for `code` at [`TEXT`].
fn elf(sections: &[(&str, &[u8])], code: &[u8], entry: u64) -> Vec<u8> {
    let mut file = vec![0; (TEXT + TEXT_BYTES) as usize];
    file[TEXT as usize..][..code.len()].copy_from_slice(code);
    let mut names = vec![0];
    let mut headers = vec![[0_u64; 8]];
    for (name, bytes) in sections {
        headers.push([
            names.len() as u64 | 1 << 32,
            0,
            file.len() as u64,
            file.len() as u64,
            bytes.len() as u64,
            0,
            1,
            0,
        ]);
        names.extend([name.as_bytes(), b"\0"].concat());
        file.extend(*bytes);
    }
    headers.push([0, 0, 0, file.len() as u64, names.len() as u64, 0, 1, 0]);
    file.extend(names);
    let section_headers = file.len() as u64;
    file.extend(headers.iter().flatten().flat_map(|word| word.to_le_bytes()));
    let mut head = b"\x7fELF\x02\x01\x01".to_vec();
    head.resize(16, 0);
    head.extend(b"\x03\x00\x3e\x00\x01\x00\x00\x00");
    for word in [entry, 64, section_headers] {
        head.extend(word.to_le_bytes());
    }
    head.extend([0; 4]);
    for half in [
        64,
        56,
        1,
        64,
        headers.len() as u16,
        headers.len() as u16 - 1,
    ] {
        head.extend(half.to_le_bytes());
    }
    let load = [1 | 5 << 32, TEXT, TEXT, TEXT, TEXT_BYTES, TEXT_BYTES, 1];
    head.extend(load.iter().flat_map(|word: &u64| word.to_le_bytes()));
    file[..head.len()].copy_from_slice(&head);
    file
}

fn found_in(eh_frame: &Entries) -> Found {
    rows(&elf(&[(".eh_frame", &eh_frame.0)], &[], 0)[..], None).unwrap()
}

/// One row a line: hexadecimal offset into the text, then the rule.
fn shown(found: &Found) -> Vec<String> {
    let rows = found.rows.rows.iter();
    rows.map(|&(addr, rule)| {
        let line = format!("{:x} {}", addr - TEXT, show(found, rule));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    })
    .collect()
}

fn show(found: &Found, rule: TableRule) -> Shown<'_> {
    Shown {
        arch: found.arch,
        rule,
        wide: &found.rows.wide,
    }
}

#[track_caller]
fn check(eh_frame: Entries, expected: &[&str]) {
    assert_eq!(shown(&found_in(&eh_frame)), expected);
}

#[test]
fn function_without_instructions_has_the_row_of_its_cie() {
    check(
        Entries::new().function(TEXT, 32, b""),
        &["0 rsp+8 u c-8", "20 none"],
    );
}

#[test]
fn pushed_frame_pointer_is_followed_through_a_function() {
    // push %rbp; mov %rsp,%rbp; ...; pop %rbp; ret; a cold part behind.
    let program = b"\x41\x0e\x10\x86\x02\x43\x0d\x06\x50\x0a\x0c\x07\x08\x41\x0b";
    check(
        Entries::new().function(TEXT, 48, program),
        &[
            "0 rsp+8 u c-8",
            "1 rsp+16 c-16 c-8",
            "4 rbp+16 c-16 c-8",
            // Popped: back in its register.
            "14 rsp+8 u c-8",
            "15 rbp+16 c-16 c-8",
            "30 none",
        ],
    );
}

#[test]
fn frame_pointer_in_the_red_zone_is_read_there() {
    check(
        Entries::new().function(TEXT, 32, b"\x45\x86\x02"),
        &["0 rsp+8 u c-8", "5 rsp+8 c-16 c-8", "20 none"],
    );
}

#[test]
fn restore_goes_back_to_the_cie() {
    check(
        Entries::new().function(
            TEXT,
            32,
            b"\x41\x0e\x10\x86\x02\x42\xc6\x42\x07\x10\x42\xd0",
        ),
        &[
            "0 rsp+8 u c-8",
            "1 rsp+16 c-16 c-8",
            "3 rsp+16 u c-8",
            "5 root",
            "7 rsp+16 u c-8",
            "20 none",
        ],
    );
}

#[test]
fn realigned_stack_is_a_wide_rule() {
    // lea 8(%rsp),%r10; and $-32,%rsp; push -8(%r10); push %rbp; mov %rsp,%rbp; push %r10.
    let program = b"\x45\x0c\x0a\x00\x49\x10\x06\x02\x76\x00\x45\x0f\x03\x76\x78\x06";
    let found = found_in(&Entries::new().function(TEXT, 32, program));
    assert_eq!(
        shown(&found),
        [
            "0 rsp+8 u c-8",
            "5 r10+0 u c-8",
            "e r10+0 *(rbp+0) c-8",
            "13 *(rbp-8) *(rbp+0) c-8",
            "20 none"
        ]
    );
    let wide = WideRule {
        cfa_base: 1,
        cfa_offset: -8,
        cfa_is_read: 1,
        cfa_addend: 0,
        fp_rule: FP_AT_FP,
        fp_offset: 0,
        ra_rule: RA_AT_CFA,
        ra_offset: -8,
    };
    let by_r10 = WideRule {
        cfa_base: BASE_FIRST_SCRATCH,
        ra_offset: -8,
        ..WideRule::default()
    };
    let saved = WideRule {
        fp_rule: FP_AT_FP,
        ..by_r10
    };
    assert_eq!(found.rows.wide, [by_r10, saved, wide]);
    assert_eq!(found.report.refused(Reason::CfaRegister), 0);
}

#[test]
fn frame_known_by_any_other_register_has_no_rule() {
    // r13 + 8, and 16, by the second instruction.
    let program = b"\x0c\x0d\x08\x45\x0e\x10";
    let found = found_in(&Entries::new().function(TEXT, 32, program));
    assert_eq!(shown(&found), ["0 none"]);
    assert_eq!(found.report.refused(Reason::CfaRegister), 2);
}

#[test]
fn expressions_become_one_read_with_an_addend() {
    // OpenSSL: *(rsp+152)+8, as plus_uconst, and as constant and plus or minus.
    let program = b"\x0f\x06\x77\x98\x01\x06\x23\x08\x41\x0f\x06\x77\x98\x01\x06\x38\x22\
                    \x41\x0f\x06\x77\x98\x01\x06\x38\x1c";
    check(
        Entries::new().function(TEXT, 32, program),
        &["0 *(rsp+152)+8 u c-8", "2 *(rsp+152)-8 u c-8", "20 none"],
    );
}

#[test]
fn expressions_of_other_forms_have_no_rule() {
    // Two reads; a register of none; a multiplication; nothing; a constant left over.
    for expression in [
        &b"\x77\x08\x06\x06"[..],
        b"\x71\x08",
        b"\x77\x08\x38\x1e",
        b"",
        b"\x77\x08\x38",
        b"\x77",
    ] {
        let program = [&[0x0f, expression.len() as u8], expression].concat();
        check(Entries::new().function(TEXT, 32, &program), &["0 none"]);
    }
}

#[test]
fn long_offsets_are_wide_rules() {
    check(
        Entries::new().function(TEXT, 32, b"\x0e\x80\x80\x04\x41\x0e\x0c\x41\x0e\xf8\x7f"),
        &[
            "0 rsp+65536 u c-8",
            "1 rsp+12 u c-8",
            "2 rsp+16376 u c-8",
            "20 none",
        ],
    );
}

#[test]
fn linkage_table_has_a_rule_of_its_own() {
    let program = b"\x0e\x10\x46\x0e\x18\x4a\x0f\x0b\x77\x08\x80\x00\x3f\x1a\x3b\x2a\x33\x24\x22";
    check(
        Entries::new().function(TEXT, 64, program),
        &["0 rsp+16 u c-8", "6 rsp+24 u c-8", "10 plt", "40 none"],
    );
}

#[test]
fn linkage_table_with_endbr_is_written_out() {
    let program = b"\x0f\x0b\x77\x08\x80\x00\x3f\x1a\x39\x2a\x33\x24\x22";
    check(
        Entries::new().function(TEXT, 32, program),
        &[
            "0 rsp+8 u c-8",
            "9 rsp+16 u c-8",
            "10 rsp+8 u c-8",
            "19 rsp+16 u c-8",
            "20 none",
        ],
    );
}

#[test]
fn signal_trampoline_is_known_by_its_expression() {
    let program = b"\x0f\x04\x77\xa0\x01\x06\x10\x10\x03\x77\xa8\x01";
    let entries = Entries::default().cie(b"S", Entries::INITIAL);
    check(
        entries
            .function(TEXT, 32, program)
            .function(TEXT + 32, 32, b""),
        &["0 signal", "20 rsp+8 u c-8", "40 none"],
    );
}

#[test]
fn return_address_is_found_where_glibc_has_it() {
    // In rdi, as in `vfork`; at CFA - 16, as in `__longjmp_chk`.
    for (program, expected) in [
        (&b"\x0e\x00\x09\x10\x05"[..], "0 rsp+0 u rdi"),
        (b"\x90\x02", "0 rsp+8 u c-16"),
    ] {
        check(
            Entries::new().function(TEXT, 32, program),
            &[expected, "20 none"],
        );
    }
}

#[test]
fn return_address_elsewhere_has_no_rule() {
    // In rsi; without any rule; computed.
    for (cie, program) in [
        (Entries::INITIAL, &b"\x09\x10\x04"[..]),
        (b"\x0c\x07\x08", b""),
        (Entries::INITIAL, b"\x14\x10\x02"),
    ] {
        let found = found_in(&Entries::default().cie(b"", cie).function(TEXT, 32, program));
        assert_eq!(shown(&found), ["0 none"]);
        assert_eq!(found.report.refused(Reason::ReturnAddress), 1);
    }
}

#[test]
fn padding_belongs_to_the_row_before_and_a_gap_to_none() {
    let entries = Entries::new()
        .function(TEXT, 8, b"\x0e\x10")
        .function(TEXT + 0x17, 1, b"\x0e\x20")
        .function(TEXT + 0x28, 8, b"");
    check(
        entries,
        &[
            "0 rsp+16 u c-8",
            "17 rsp+32 u c-8",
            "18 none",
            "28 rsp+8 u c-8",
            "30 none",
        ],
    );
}

#[test]
fn functions_need_no_order_and_the_later_start_wins() {
    let entries = Entries::new()
        .function(TEXT + 64, 32, b"\x0e\x20")
        .function(TEXT, 80, b"\x0e\x10")
        .function(TEXT + 32, 0, b"\x0e\x30");
    let found = found_in(&entries);
    assert_eq!(
        shown(&found),
        ["0 rsp+16 u c-8", "20 none", "40 rsp+32 u c-8", "60 none"]
    );
}

#[test]
fn functions_outside_of_the_text_are_counted() {
    let entries = Entries::new()
        .function(0, 32, b"")
        .function(TEXT + TEXT_BYTES - 8, 32, b"")
        .function(u64::MAX - 8, 32, b"")
        .function(TEXT, 32, b"");
    let found = found_in(&entries);
    assert_eq!(shown(&found), ["0 rsp+8 u c-8", "20 none"]);
    assert_eq!(found.report.refused(Reason::OutsideText), 2);
    assert_eq!(found.report.refused(Reason::BadEntry), 1);
}

#[test]
fn broken_entries_do_not_hide_the_others() {
    let entries = Entries::new()
        // A CIE that is itself, one that is a function, one far away, a strange augmentation.
        .entry(&[[4, 0, 0, 0].as_slice(), &[0; 16]].concat())
        .entry(&[0xff; 20])
        .cie(b"?", b"")
        .function(TEXT, 32, b"\x0b")
        .function(TEXT + 32, 32, b"\x0e\x10");
    let found = found_in(&entries);
    assert_eq!(shown(&found), ["0 none", "20 rsp+16 u c-8", "40 none"]);
    assert_eq!(found.report.refused(Reason::BadEntry), 2);
    assert_eq!(found.report.refused(Reason::BadProgram), 1);
}

#[test]
fn rows_before_an_error_in_a_program_stay() {
    check(
        Entries::new().function(TEXT, 32, b"\x41\x0e\x10\x44\x3f"),
        &["0 rsp+8 u c-8", "1 rsp+16 u c-8", "5 none"],
    );
}

#[test]
fn claims_of_gigabytes_end_the_section() {
    for claim in [
        &b"\xf0\xff\xff\xff"[..],
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    ] {
        let mut entries = Entries::new().function(TEXT, 32, b"");
        entries.0.extend(claim);
        let found = found_in(&entries);
        assert_eq!(shown(&found), ["0 rsp+8 u c-8", "20 none"]);
        assert_eq!(found.report.refused(Reason::BadEntry), 1);
    }
}

#[test]
fn endless_programs_are_cut_off() {
    // 100 000 times: advance by one factored byte, which is none, and another CFA.
    let mut entries =
        Entries::default().entry(b"\x00\x00\x00\x00\x01\x00\x00\x78\x10\x0c\x07\x08\x90\x01");
    let program = b"\x41\x0e\x10\x41\x0e\x18".repeat(100_000);
    entries = entries.function(TEXT, 32, &program);
    check(entries, &["0 rsp+24 u c-8", "20 none"]);
    // A CIE with a program of its own length is not run for each function.
    let long = [Entries::INITIAL, &[0; 1000]].concat();
    let found = found_in(&Entries::default().cie(b"", &long).function(TEXT, 32, b""));
    assert_eq!(found.report.refused(Reason::BadEntry), 1);
}

#[test]
fn states_are_remembered_only_so_deep() {
    let found = found_in(&Entries::new().function(TEXT, 32, &[0x0a; 1000]));
    assert_eq!(shown(&found), ["0 none"]);
    let found = found_in(&Entries::new().function(TEXT, 32, b"\x0b"));
    assert_eq!(found.report.refused(Reason::BadProgram), 1);
}

#[test]
fn debug_frame_says_what_eh_frame_does_not() {
    let eh_frame = Entries::new().function(TEXT + 32, 32, b"\x0e\x10");
    let mut debug_frame =
        Entries::default().entry(b"\xff\xff\xff\xff\x01\x00\x01\x78\x10\x0c\x07\x08\x90\x01");
    for (start, cfa) in [(TEXT, 0x20), (TEXT + 32, 0x30), (TEXT + 64, 0x40)] {
        let head = [
            [0; 4].as_slice(),
            &start.to_le_bytes(),
            &32_u64.to_le_bytes(),
        ]
        .concat();
        debug_frame = debug_frame.entry(&[&head[..], &[0x0e, cfa]].concat());
    }
    let expected = [
        "0 rsp+32 u c-8",
        "20 rsp+16 u c-8",
        "40 rsp+64 u c-8",
        "60 none",
    ];
    let both = [
        (".eh_frame", &eh_frame.0[..]),
        (".debug_frame", &debug_frame.0),
    ];
    assert_eq!(
        shown(&rows(&elf(&both, &[], 0)[..], None).unwrap()),
        expected
    );
    let (file, debug_file) = (elf(&both[..1], &[], 0), elf(&both[1..], &[], 0));
    let found = rows(&file[..], Some(&debug_file[..])).unwrap();
    assert_eq!(shown(&found), expected);
}

#[test]
fn compressed_sections_are_read_and_bombs_are_not() {
    let head = [
        [0; 4].as_slice(),
        &TEXT.to_le_bytes(),
        &32_u64.to_le_bytes(),
    ]
    .concat();
    let debug_frame = Entries::default()
        .entry(b"\xff\xff\xff\xff\x01\x00\x01\x78\x10\x0c\x07\x08\x90\x01")
        .entry(&head);
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut zlib, &debug_frame.0).unwrap();
    let zlib = zlib.finish().unwrap();
    for (claim, expected) in [
        (debug_frame.0.len() as u64, vec!["0 rsp+8 u c-8", "20 none"]),
        (1, vec!["0 none"]),
        (100 << 30, vec!["0 none"]),
        (u64::MAX, vec!["0 none"]),
    ] {
        // ELFCOMPRESS_ZLIB, size, alignment.
        let section: [&[u8]; 4] = [
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &claim.to_le_bytes(),
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &zlib,
        ];
        let mut file = elf(&[(".debug_frame", &section.concat())], &[], 0);
        let headers = u64::from_le_bytes(*file[0x28..].first_chunk().unwrap()) as usize;
        // SHF_COMPRESSED among the flags of the first section.
        file[headers + 64 + 9] = 8;
        assert_eq!(shown(&rows(&file[..], None).unwrap()), expected, "{claim}");
    }
}

#[test]
fn entry_point_without_unwind_information_is_a_root() {
    let eh_frame = Entries::new()
        .function(TEXT, 32, b"")
        .function(TEXT + 96, 8, b"");
    let file = elf(&[(".eh_frame", &eh_frame.0)], &[], TEXT + 48);
    let found = rows(&file[..], None).unwrap();
    assert_eq!(
        shown(&found),
        [
            "0 rsp+8 u c-8",
            "20 none",
            "30 root",
            "60 rsp+8 u c-8",
            "68 none"
        ]
    );
}

#[test]
fn code_with_prologues_follows_frame_pointers() {
    let eh_frame = Entries::new().function(TEXT + 0x800, 32, b"");
    let code = b"\x55\x48\x89\xe5\x5d\xc3".repeat(20);
    let file = elf(&[(".eh_frame", &eh_frame.0)], &code, 0);
    let found = rows(&file[..], None).unwrap();
    assert_eq!(
        shown(&found),
        ["0 frame-pointer", "800 rsp+8 u c-8", "820 none"]
    );
}

#[test]
fn functions_of_musl_are_known_by_their_code() {
    let landmarks = Arch::X86_64.facts().landmarks;
    let mut code = vec![0x90; 32];
    code.extend(landmarks[0].code);
    code.resize(128, 0x90);
    code.extend(landmarks[1].code);
    let found = rows(&elf(&[], &code, 0)[..], None).unwrap();
    assert_eq!(
        shown(&found),
        [
            "0 rsp+8 u c-8",
            "45 new-thread",
            "49 root",
            "58 rsp+8 u c-8",
            "7f signal",
            "89 rsp+8 u c-8",
            "3000 none",
        ]
    );
}

#[test]
fn linkage_table_that_no_section_describes_is_known_by_its_code() {
    let mut code = vec![0x90; 33];
    code.resize(48, 0xcc);
    code.extend(b"\xff\x35\x01\x02\x03\x04\xff\x25\x01\x02\x03\x04\x0f\x1f\x40\0");
    for _ in 0..3 {
        code.extend(b"\xff\x25\x01\x02\x03\x04\x68\0\0\0\0\xe9\x01\x02\x03\x04");
    }
    let found = rows(&elf(&[], &code, 0)[..], None).unwrap();
    assert_eq!(
        shown(&found),
        [
            "0 rsp+8 u c-8",
            "30 rsp+16 u c-8",
            "36 rsp+24 u c-8",
            "40 plt",
            // Whatever follows is taken for functions.
            "70 rsp+8 u c-8",
            "3000 none"
        ]
    );
}

/// A program for arm64, see `chains/aarch64.c`.
const AARCH64: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/unwind/chains/aarch64.elf");

/// The files of this process, and well-known ones where they exist.
fn real_files() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().filter(|line| line.contains("r-xp"));
    let mapped = mapped.filter_map(|line| Some(line[line.find('/')?..].to_owned()));
    let known = [
        "/bin/bash",
        "/usr/bin/python3.11",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    ];
    let known = known.into_iter().map(str::to_owned);
    mapped
        .chain(known.filter(|path| fs::exists(path).unwrap()))
        .collect()
}

/// What readelf says of a file.
fn readelf_rows(path: &str, arch: Arch) -> Vec<readelf::Row> {
    let output = Command::new("readelf")
        .args(readelf::ARGUMENTS)
        .arg(path)
        .output()
        .expect("readelf is needed; it is in Debian's package binutils");
    readelf::parse(
        &String::from_utf8(output.stdout).unwrap(),
        arch.frame_pointer_name(),
    )
}

#[test]
fn every_row_is_as_readelf_prints_it() {
    for path in real_files().into_iter().chain([AARCH64.to_owned()]) {
        let bytes = fs::read(&path).unwrap();
        let found = rows(&bytes[..], None).unwrap();
        let readelf = readelf_rows(&path, found.arch);
        assert!(readelf.len() > 30, "{path}");
        let mut kinds = std::collections::BTreeMap::new();
        for row in readelf.iter().filter(|row| row.start < row.end) {
            for addr in [row.start, row.end - 1] {
                let rule = found.rows.lookup(addr);
                let ours = show(&found, rule);
                let kind = readelf::compare(row, &ours);
                assert_ne!(kind, Different, "{path} at {addr:#x}: {row:?}, we {ours}");
                *kinds.entry(kind).or_insert(0) += 1;
            }
        }
        let count = |kind| kinds.get(&kind).copied().unwrap_or(0);
        let refused = |reason| 2 * found.report.refused(reason);
        // Functions that jump far away load the return address into a register first.
        assert_eq!(
            count(OtherRegister),
            refused(Reason::CfaRegister) + refused(Reason::ReturnAddress),
            "{path}"
        );
        for reason in [
            Reason::BadEntry,
            Reason::BadProgram,
            Reason::Overlap,
            Reason::TooMany,
        ] {
            assert_eq!(found.report.refused(reason), 0, "{path}: {reason:?}");
        }
        check_expressions(&path, &found.rows.wide);
    }
}

/// Compares what was read from memory with the expressions that readelf prints.
fn check_expressions(path: &str, wide: &[WideRule]) {
    let output = Command::new("readelf")
        .args(["--wide", "--debug-dump=frames,no-follow-links", path])
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    // What lies below the stack pointer is where a called function has saved a register.
    let is_expression = |rule: &&WideRule| {
        rule.cfa_is_read == 1 && (rule.cfa_base != BASE_SP || rule.cfa_offset >= 0)
    };
    for rule in wide.iter().filter(is_expression) {
        let bases = [
            "DW_OP_breg7 (rsp)",
            "DW_OP_breg6 (rbp)",
            "DW_OP_breg3 (rbx)",
        ];
        let base = bases[rule.cfa_base as usize];
        let addend = match rule.cfa_addend {
            0 => String::new(),
            addend => format!("; DW_OP_plus_uconst: {addend}"),
        };
        let offset = rule.cfa_offset;
        let expression = format!("({base}: {offset}; DW_OP_deref{addend})");
        assert!(text.contains(&expression), "{path}: {expression}");
    }
}

/// Memory that has a value everywhere: never far above its own address, as on a stack.
fn memory(addr: u64) -> u64 {
    addr + 64 + (addr.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52 & !7)
}

#[test]
fn every_row_unwinds_as_framehop_does() {
    for path in real_files() {
        let bytes = fs::read(&path).unwrap();
        let found = rows(&bytes[..], None).unwrap();
        let gaps = gaps_of(&bytes);
        let unwinder = framehop_for(&path, &bytes);
        let mut cache = CacheX86_64::new();
        for &(addr, rule) in &found.rows.rows {
            // framehop is not shown the code, and does not evaluate expressions that read memory:
            // there it goes on by guesses, as where there is no rule.
            if gaps.iter().any(|gap| gap.contains(&addr)) {
                continue;
            }
            let is_compared = match rule {
                // framehop does not look into the link register of `vfork`.
                TableRule::Short(rule) if rule.is_link() => false,
                // Nor does it know which of two threads it looks at.
                TableRule::Short(rule) => {
                    ![Rule::NONE, Rule::SIGNAL, Rule::NEW_THREAD].contains(&rule)
                }
                TableRule::Wide(index) => {
                    let wide = &found.rows.wide[index as usize];
                    wide.cfa_is_read == 0 && [BASE_SP, BASE_FP].contains(&wide.cfa_base)
                }
            };
            if !is_compared {
                continue;
            }
            let at = Registers {
                ip: addr,
                sp: 0x7fff_0000_0000,
                fp: 0x7fff_0000_4000,
                ..Registers::default()
            };
            let mut registers = UnwindRegsX86_64::new(at.ip, at.sp, at.fp);
            let address = FrameAddress::from_instruction_pointer(addr);
            let read = &mut |addr| Ok(memory(addr));
            let ip = unwinder.unwind_frame(address, &mut registers, &mut cache, read);
            let theirs = ip.unwrap().map(|ip| Registers {
                ip,
                sp: registers.sp(),
                fp: registers.bp(),
                ..Registers::default()
            });
            let read = |addr| Some(memory(addr));
            let ours = chains::step::<X86_64>(rule, &found.rows.wide, at, read);
            // A popped frame pointer is the same in its register as below the stack pointer, but
            // not in this memory.
            let is_popped = |theirs: Registers, ours: Registers| {
                ours.fp == at.fp && (ours.ip, ours.sp) == (theirs.ip, theirs.sp)
            };
            match (theirs, ours) {
                (theirs, ours) if theirs == ours => {}
                (Some(theirs), Some(ours)) if is_popped(theirs, ours) => {}
                _ => panic!("{path} at {addr:#x}: {theirs:x?}, ours {ours:x?}"),
            }
        }
    }
}

/// Linkers put them together from parts that nothing describes, and they may be shorter than padding.
#[test]
fn what_runs_before_and_behind_main_has_rules() {
    for path in ["/bin/bash", "/usr/bin/python3.11"] {
        let bytes = fs::read(path).unwrap();
        let file = object::File::parse(&bytes[..]).unwrap();
        let found = rows(&bytes[..], None).unwrap();
        for name in [".init", ".fini"] {
            let section = file.section_by_name(name).unwrap();
            let (start, end) = (section.address(), section.address() + section.size());
            let plain = |cfa| TableRule::Short(Rule::from_register(Rule::FROM_SP, cfa, 0).unwrap());
            for (addr, cfa) in [(start, 8), (end - 2, 16), (end - 1, 8)] {
                assert_eq!(found.rows.lookup(addr), plain(cfa), "{path} {name}");
            }
        }
    }
}

/// The code that `.eh_frame` does not describe.
fn gaps_of(file: &[u8]) -> Vec<Range<u64>> {
    let image = Image::parse(file).unwrap();
    let section = image.eh_frame().unwrap();
    let text = image.text();
    let steps = eh_frame_steps(&image, &section, &text, &mut Output::default());
    steps.gaps(&image.code(&text), PADDING_BYTES)
}

fn framehop_for(path: &str, bytes: &[u8]) -> UnwinderX86_64<Vec<u8>> {
    let file = object::File::parse(bytes).unwrap();
    let section = |name| {
        let section = file.section_by_name(name)?;
        let start = section.address();
        Some((start..start + section.size(), section.data().ok()?.to_vec()))
    };
    let (eh_frame_svma, eh_frame) = section(".eh_frame").unzip();
    let (eh_frame_hdr_svma, eh_frame_hdr) = section(".eh_frame_hdr").unzip();
    let mut unwinder = UnwinderX86_64::new();
    unwinder.add_module(Module::new(
        path.to_owned(),
        0..1 << 40,
        0,
        ExplicitModuleSectionInfo {
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            ..ExplicitModuleSectionInfo::default()
        },
    ));
    unwinder
}

#[test]
fn table_gives_the_rule_of_the_rows_for_every_address() {
    for path in real_files() {
        let bytes = fs::read(&path).unwrap();
        let found = rows(&bytes[..], None).unwrap();
        for text in &found.report.text {
            let table = table::build(&found.rows, text.clone()).unwrap();
            let mut row = 0;
            // All of a small file, and a part of each page of a large one.
            let step = if text.end - text.start > 2 << 20 {
                7
            } else {
                1
            };
            for addr in text.clone().step_by(step) {
                while found
                    .rows
                    .rows
                    .get(row + 1)
                    .is_some_and(|row| row.0 <= addr)
                {
                    row += 1;
                }
                let (start, rule) = found.rows.rows[row];
                let rule = if start <= addr { rule } else { TableRule::NONE };
                let theirs = match table.lookup(addr) {
                    TableRule::Wide(index) => {
                        let wide = table.wide[index as usize];
                        let index = found.rows.wide.iter().position(|rule| *rule == wide);
                        TableRule::Wide(index.unwrap() as u32)
                    }
                    rule => rule,
                };
                assert_eq!(theirs, rule, "{path} at {addr:#x}");
            }
        }
    }
}

#[test]
fn program_headers_lead_to_eh_frame_without_sections() {
    let mut bytes = fs::read("/proc/self/exe").unwrap();
    let whole = rows(&bytes[..], None).unwrap();
    let file = object::File::parse(&bytes[..]).unwrap();
    let end = |name| {
        let section = file.section_by_name(name).unwrap();
        section.address() + section.size()
    };
    let behind_text = end(".text")..end(".fini");
    // No section headers: offset and count are zero.
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x40].fill(0);
    let stripped = rows(&bytes[..], None).unwrap();
    assert!(whole.rows.rows.len() > 10_000);
    // Sections alone tell that the few bytes behind the rest are no padding.
    let others = |found: &Found| {
        let rows = found.rows.rows.iter().copied();
        let others = rows.filter(|row| !behind_text.contains(&row.0));
        others.collect::<Vec<_>>()
    };
    assert!(others(&stripped) == others(&whole));
    assert_eq!(stripped.rows.wide, whole.rows.wide);
}

#[test]
fn changed_or_cut_files_never_panic() {
    let original = fs::read("/bin/true").unwrap();
    let eh_frame = object::File::parse(&original[..]).unwrap();
    let (section, _) = eh_frame
        .section_by_name(".eh_frame")
        .unwrap()
        .file_range()
        .unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..2000 {
        let mut bytes = original.clone();
        for _ in 0..random.usize(1..16) {
            let place = match round % 3 {
                0 => random.usize(..1024),
                1 => section as usize + random.usize(..1024),
                _ => random.usize(..bytes.len()),
            };
            bytes[place] = random.u8(..);
        }
        if round % 8 == 0 {
            bytes.truncate(random.usize(..bytes.len()));
        }
        let Ok(found) = rows(&bytes[..], Some(&original[..])) else {
            continue;
        };
        for pair in found.rows.rows.windows(2) {
            assert!(pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1);
        }
        assert!(
            found
                .rows
                .rows
                .last()
                .is_none_or(|row| row.1 == TableRule::NONE)
        );
        for text in &found.report.text {
            for piece in table::pieces(&found.rows, text.clone()) {
                let table = table::build(&found.rows, piece.clone());
                assert!(table.is_none_or(
                    |table| table.lookup(piece.start) == found.rows.lookup(piece.start)
                ));
            }
        }
    }
}
