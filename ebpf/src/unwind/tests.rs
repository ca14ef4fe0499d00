//! Stacks of both processors, made by hand, and random ones.

use core::marker::PhantomData;
use std::{vec, vec::Vec};

use hotspan_abi::unwind::{BASE_SP, FP_SAME, RA_AT_CFA, RA_AT_FP, row};

use super::*;
use crate::arch::{Aarch64, X86_64};

/// Words from `base` on; everything else cannot be read.
struct Memory<A = X86_64> {
    base: u64,
    words: Vec<u64>,
    reads: usize,
    arch: PhantomData<A>,
}

impl<A> Memory<A> {
    fn new(words: Vec<u64>) -> Self {
        Self {
            base: STACK,
            words,
            reads: 0,
            arch: PhantomData,
        }
    }

    fn copy(&mut self, addr: u64, out: &mut [u64]) -> bool {
        self.reads += 1;
        let Some(first) = addr
            .checked_sub(self.base)
            .map(|bytes| (bytes / 8) as usize)
        else {
            return false;
        };
        let Some(words) = self.words.get(first..first.saturating_add(out.len())) else {
            return false;
        };
        out.copy_from_slice(words);
        true
    }
}

impl<A: Arch> ReadMemory for Memory<A> {
    type Arch = A;

    fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool {
        self.copy(addr, words)
    }
    fn read_word(&mut self, addr: u64) -> Option<u64> {
        let mut word = [0];
        self.copy(addr, &mut word).then_some(word[0])
    }
}

#[derive(Default)]
struct HostTables {
    words: Vec<u32>,
    wide: Vec<WideRule>,
}

impl Tables for HostTables {
    type Words<'a> = &'a [u32];

    fn segment(&self, _: u32) -> Option<&[u32]> {
        Some(&self.words)
    }
    fn wide(&self, index: u32) -> Option<WideRule> {
        self.wide.get(index as usize).copied()
    }
}

const STACK: u64 = 0x7fff_0000_0000;
const TEXT: u64 = 0x40_0000;

/// One mapping at [`TEXT`] whose rows are given by offset into it.
fn tables(rows: &[(u64, Rule)]) -> (HostTables, ProcessTable) {
    let page_count = rows
        .last()
        .map_or(0, |&(offset, _)| offset / PAGE_BYTES + 1) as u32;
    let pages = MAPPING_WORDS;
    let first_row = pages + page_count + 1;
    let mapping = Mapping {
        start: TEXT,
        end: TEXT + u64::from(page_count) * PAGE_BYTES,
        pages_start: TEXT,
        pages,
        page_count,
    };
    let mut words = mapping.to_words().to_vec();
    for page in 0..=u64::from(page_count) {
        let before = rows
            .iter()
            .filter(|&&(offset, _)| offset < page * PAGE_BYTES)
            .count();
        words.push(first_row + before as u32);
    }
    words.extend(rows.iter().map(|&(offset, rule)| row(offset, rule)));
    (
        HostTables {
            words,
            wide: Vec::new(),
        },
        ProcessTable {
            mappings: 0,
            count: 1,
            is_changing: 0,
        },
    )
}

fn walk<A: Arch>(
    registers: Registers,
    memory: &mut Memory<A>,
    tables: &HostTables,
    process: ProcessTable,
) -> (Vec<u64>, StopReason) {
    let mut unwinder = Unwinder::EMPTY;
    unwinder.enter(process);
    unwinder.start(registers);
    let mut ips = Vec::new();
    for _ in 0..10_000 {
        let rule = unwinder.rule(tables);
        match unwinder.step(rule, memory, tables) {
            Step::Caller => ips.push(unwinder.registers.ip),
            Step::Stop(reason) => return (ips, reason),
        }
    }
    panic!("a stack never ended");
}

fn from_sp(cfa: i64, fp: i64) -> Rule {
    Rule::from_register(Rule::FROM_SP, cfa, fp).unwrap()
}

/// Registers at an offset into the text, at the bottom of the stack.
fn at(offset: u64, fp: u64) -> Registers {
    Registers {
        ip: TEXT + offset,
        sp: STACK,
        fp,
        ..Registers::default()
    }
}

/// Walks a stack by rows, and compares where it came through, as offsets into the text, and how it
/// ended.
#[track_caller]
fn check<A: Arch>(
    rows: &[(u64, Rule)],
    wide: &[WideRule],
    registers: Registers,
    stack: &[u64],
    expected: (&[u64], StopReason),
) {
    let (mut tables, process) = tables(rows);
    tables.wide = wide.to_vec();
    let mut memory = Memory::<A>::new(stack.to_vec());
    let (ips, reason) = walk(registers, &mut memory, &tables, process);
    let offsets: Vec<_> = ips.iter().map(|ip| ip.wrapping_sub(TEXT)).collect();
    assert_eq!((&offsets[..], reason), expected);
}

/// A chain of `depth` frames of `frame_words` words, the last with a zero frame pointer.
fn chain<A>(depth: usize, frame_words: usize) -> Memory<A> {
    let mut words = std::vec![0; depth * frame_words + 2];
    for i in 0..depth {
        let at = i * frame_words;
        let next = STACK + ((at + frame_words) * 8) as u64;
        words[at] = if i + 1 == depth { 0 } else { next };
        words[at + 1] = 0x10_0000 + i as u64;
    }
    Memory::new(words)
}

fn walk_by_frame_pointer<A: Arch>(fp: u64, memory: &mut Memory<A>) -> (Vec<u64>, StopReason) {
    let process = ProcessTable::default();
    walk(at(0, fp), memory, &HostTables::default(), process)
}

#[test]
fn chain_of_frame_pointers_is_walked_to_its_zero() {
    fn check<A: Arch>() {
        let (ips, reason) = walk_by_frame_pointer(STACK, &mut chain::<A>(400, 4));
        assert_eq!(ips, (0..400).map(|i| 0x10_0000 + i).collect::<Vec<_>>());
        assert_eq!(reason, StopReason::FramePointerEnd);
    }
    check::<X86_64>();
    check::<Aarch64>();
}

#[test]
fn one_read_serves_many_frames() {
    let mut memory = chain::<X86_64>(31, 4);
    memory.words.resize(1024, 0);
    walk_by_frame_pointer(STACK, &mut memory);
    assert_eq!(memory.reads, 1);
}

#[test]
fn doubt_is_of_the_first_frame_without_a_table() {
    let (tables, process) = tables(&[(0, from_sp(8, 0)), (0x80, Rule::FRAME_POINTER)]);
    let doubt_of = |ip: u64, has_table: bool| {
        let mut unwinder = Unwinder::EMPTY;
        let registers = Registers {
            ip,
            ..Registers::default()
        };
        unwinder.enter(process);
        unwinder.start(registers);
        if unwinder.find_mapping(&tables) {
            unwinder.mapping().page_count *= u32::from(has_table);
            unwinder.find_rule(&tables);
        } else {
            unwinder.rule_elsewhere();
        }
        let doubt = unwinder.doubt;
        // What comes behind does not change it.
        if doubt != SURE {
            unwinder.rule_elsewhere();
            assert_eq!(unwinder.doubt, doubt);
        }
        doubt
    };
    assert_eq!(doubt_of(TEXT, true), SURE);
    assert_eq!(doubt_of(TEXT, false), GUESSED);
    assert_eq!(doubt_of(TEXT - 1, true), LOST);
}

#[test]
fn unreadable_frame_stops_with_its_reason() {
    let stopped = walk_by_frame_pointer(STACK + (1 << 20), &mut chain::<X86_64>(3, 4));
    assert_eq!(stopped, (Vec::new(), StopReason::StackReadFailed));
}

#[test]
fn frame_pointer_that_goes_down_or_is_odd_is_none() {
    for fp in [STACK - 8, STACK + 4, 1, u64::MAX - 7] {
        let stopped = walk_by_frame_pointer(fp, &mut chain::<X86_64>(3, 4));
        assert_eq!(stopped, (Vec::new(), StopReason::NoUnwindTable));
    }
}

#[test]
fn each_row_holds_up_to_the_next_across_pages() {
    let rows = [
        (0, Rule::NONE),
        (0x10, from_sp(8, 0)),
        (0x11, from_sp(16, 16)),
        (0x3f0, Rule::PLT),
        (0x400, Rule::ROOT),
    ];
    let (tables, process) = tables(&rows);
    let mapping = Mapping {
        start: TEXT,
        end: TEXT + 0x500,
        pages_start: TEXT,
        pages: 8,
        page_count: 5,
    };
    let mut search = Unwinder::EMPTY.search;
    for offset in 0..0x500 {
        let wanted = rows.iter().rev().find(|&&(start, _)| start <= offset);
        let found = find_row(&mapping, TEXT + offset, &mut search, &tables);
        assert_eq!(found, wanted.unwrap().1, "{offset:#x}");
    }
    assert_eq!(
        find_row(&mapping, TEXT + 0x500, &mut search, &tables),
        Rule::NONE
    );
    assert_eq!(process.count, 1);
}

#[test]
fn table_is_followed_from_a_frameless_leaf_to_the_root() {
    // leaf: nothing pushed; middle: frame of 24 bytes that saved rbp; root.
    check::<X86_64>(
        &[
            (0, from_sp(8, 0)),
            (0x100, from_sp(32, 16)),
            (0x200, Rule::ROOT),
        ],
        &[],
        at(5, 3),
        &[TEXT + 0x150, 1, 2, 0x77, TEXT + 0x210, 9],
        (&[0x150, 0x210], StopReason::Root),
    );
}

/// A leaf that has popped its return address finds it below the stack pointer; a caller cannot have.
#[test]
fn popped_return_address_is_still_there() {
    let rows = [
        (0, from_sp(0, 0)),
        (0x100, from_sp(8, 0)),
        (0x200, Rule::ROOT),
    ];
    let leaf = |offset| Registers {
        sp: STACK + 8,
        ..at(offset, 3)
    };
    let stack = [TEXT + 0x150, TEXT + 0x210, 9];
    let expected = (&[0x150, 0x210][..], StopReason::Root);
    check::<X86_64>(&rows, &[], leaf(5), &stack, expected);
    let stack = [TEXT + 0x20, TEXT + 0x30, 9];
    let expected = (&[0x20][..], StopReason::NoUnwindTable);
    check::<X86_64>(&rows, &[], leaf(5), &stack, expected);
}

#[test]
fn table_of_arm64_is_followed_from_a_leaf_in_its_register_to_the_root() {
    // leaf: return address in x30, which is signed, 16 bytes of its own; middle: a frame of 32 bytes
    // with x29 and x30 at its bottom; then one that saved x30 alone; root.
    let signature = 0x00a5_0000_0000_0000;
    let registers = Registers {
        link: (TEXT + 0x150) | signature,
        ..at(5, STACK + 16)
    };
    check::<Aarch64>(
        &[
            (0, Rule::link(16).unwrap()),
            (0x100, from_sp(32, 32)),
            (0x200, from_sp(16, 0)),
            (0x300, Rule::ROOT),
        ],
        &[],
        registers,
        &[
            1,
            2,
            0x77,
            (TEXT + 0x210) | signature,
            5,
            6,
            TEXT + 0x310,
            8,
        ],
        (&[0x150, 0x210, 0x310], StopReason::Root),
    );
}

#[test]
fn link_register_is_not_believed_behind_a_call() {
    fn check_arch<A: Arch>() {
        let registers = Registers {
            link: TEXT + 0x10,
            ..at(5, 0)
        };
        let rows = [(0, Rule::link(0).unwrap())];
        check::<A>(
            &rows,
            &[],
            registers,
            &[],
            (&[0x10], StopReason::NoUnwindTable),
        );
    }
    check_arch::<X86_64>();
    check_arch::<Aarch64>();
}

#[test]
fn vfork_returns_to_its_register() {
    let registers = Registers {
        link: TEXT + 0x110,
        ..at(5, 0)
    };
    check::<X86_64>(
        &[
            (0, Rule::link(0).unwrap()),
            (0x100, from_sp(8, 0)),
            (0x200, Rule::ROOT),
        ],
        &[],
        registers,
        &[TEXT + 0x210],
        (&[0x110, 0x210], StopReason::Root),
    );
}

#[test]
fn frame_pointer_of_arm64_leads_into_a_table_without_the_stack_pointer() {
    // Code without a table, whose record is not where its frame ends; its caller's record is 16 above
    // the bottom of a frame of 48 bytes; then a frame without a record: its end is not known.
    let rows = [
        (0, Rule::FRAME_POINTER),
        (0x100, from_sp(48, 32)),
        (0x200, from_sp(16, 0)),
        (0x300, Rule::FRAME_POINTER),
    ];
    let stack = [
        STACK + 7 * 8,
        TEXT + 0x110,
        0,
        0,
        0,
        // The caller's frame.
        0,
        0,
        0x77,
        TEXT + 0x210,
        0,
        0,
        // Its caller's.
        TEXT + 0x310,
        0,
    ];
    check::<Aarch64>(
        &rows,
        &[],
        at(5, STACK),
        &stack,
        (&[0x110, 0x210, 0x310], StopReason::NoUnwindTable),
    );
    // From the second frame without a record one cannot go on.
    let rows = [(0, Rule::FRAME_POINTER), (0x100, from_sp(48, 0))];
    check::<Aarch64>(
        &rows,
        &[],
        at(5, STACK),
        &stack,
        (&[0x110], StopReason::NoUnwindTable),
    );
}

#[test]
fn return_address_behind_a_function_is_looked_up_in_it() {
    // The call is the last instruction of the function before the root's.
    check::<X86_64>(
        &[(0, from_sp(8, 0)), (0x100, Rule::ROOT)],
        &[],
        at(5, 0),
        &[TEXT + 0x100, TEXT + 0x101],
        (&[0x100, 0x101], StopReason::Root),
    );
}

#[test]
fn signal_goes_on_where_it_hit() {
    fn check_arch<A: Arch>(frame: impl Fn(&mut [u64])) {
        // What was interrupted is at the first instruction of its function, which is exact, and has
        // its return address in the link register.
        let mut stack = std::vec![0; 100];
        frame(&mut stack);
        check::<A>(
            &[
                (0, Rule::SIGNAL),
                (0x100, Rule::link(0).unwrap()),
                (0x200, Rule::ROOT),
            ],
            &[],
            at(5, 0),
            &stack,
            (&[0x100, 0x201], StopReason::Root),
        );
    }
    check_arch::<X86_64>(|stack| {
        stack[5 + 8] = TEXT + 0x201;
        stack[5 + 15] = STACK + 90 * 8;
        stack[5 + 16] = TEXT + 0x100;
    });
    check_arch::<Aarch64>(|stack| {
        stack[39 + 30] = TEXT + 0x201;
        stack[39 + 31] = STACK + 90 * 8;
        stack[39 + 32] = TEXT + 0x100;
    });
}

#[test]
fn cfa_that_is_read_from_the_stack_is_followed() {
    let wide = WideRule {
        cfa_base: BASE_SP,
        cfa_offset: 8,
        cfa_is_read: 1,
        cfa_addend: 8,
        fp_rule: FP_SAME,
        ra_rule: RA_AT_CFA,
        ra_offset: -8,
        ..WideRule::default()
    };
    let rows = [(0, Rule::wide(0).unwrap()), (0x200, Rule::ROOT)];
    let stack = [0, STACK + 24, 0, TEXT + 0x210, 0];
    check::<X86_64>(
        &rows,
        &[wide],
        at(5, 0),
        &stack,
        (&[0x210], StopReason::Root),
    );
}

#[test]
fn return_address_is_read_where_a_wide_rule_says() {
    // str x30, [sp, #-32]!; str x29, [sp, #16]
    let wide = WideRule {
        cfa_offset: 32,
        fp_rule: FP_AT_CFA,
        fp_offset: -16,
        ra_offset: -32,
        ..WideRule::default()
    };
    let rows = [
        (0, Rule::wide(0).unwrap()),
        (0x200, Rule::FRAME_POINTER),
        (0x300, Rule::ROOT),
    ];
    let stack = [TEXT + 0x210, 0, STACK + 40, 0, 0, 0, TEXT + 0x310];
    let expected = (&[0x210, 0x310][..], StopReason::Root);
    check::<Aarch64>(&rows, &[wide], at(5, 0), &stack, expected);
}

#[test]
fn caller_of_an_interpreted_method_has_its_stack_pointer_kept() {
    let interpreted = WideRule {
        cfa_base: BASE_FP,
        cfa_offset: -8,
        cfa_is_read: 1,
        fp_rule: FP_AT_FP,
        ra_rule: RA_AT_FP,
        ra_offset: 8,
        ..WideRule::default()
    };
    let rows = [
        (0, Rule::wide(0).unwrap()),
        (0x200, from_sp(24, 16)),
        (0x300, Rule::ROOT),
    ];
    // Its own frame, two words that make the caller's longer, and the caller's.
    let fp = STACK + 8;
    let stack = [
        STACK + 40,
        7,
        TEXT + 0x210,
        0,
        0,
        0,
        STACK + 88,
        TEXT + 0x310,
    ];
    let expected = (&[0x210, 0x310][..], StopReason::Root);
    check::<X86_64>(&rows, &[interpreted], at(5, fp), &stack, expected);
    check::<Aarch64>(&rows, &[interpreted], at(5, fp), &stack, expected);
}

#[test]
fn rule_is_known_to_its_address_and_mappings_until_it_is_forgotten() {
    let (tables, process) = tables(&[(0, from_sp(16, 0)), (0x80, Rule::FRAME_POINTER)]);
    let mut unwinder = Unwinder::EMPTY;
    let [one, other, unknown] = [(0, 1), (8, 1), (0, 0)].map(|(mappings, count)| ProcessTable {
        mappings,
        count,
        ..process
    });
    let known_at = |unwinder: &mut Unwinder, process, ip| {
        unwinder.enter(process);
        unwinder.start(at(ip, STACK));
        unwinder.known_rule()
    };
    assert_eq!(known_at(&mut unwinder, one, 5), None);
    assert!(unwinder.find_mapping(&tables));
    assert_eq!(unwinder.find_rule(&tables), from_sp(16, 0));
    assert_eq!(known_at(&mut unwinder, one, 5), Some(from_sp(16, 0)));
    assert_eq!(known_at(&mut unwinder, one, 6), None);
    assert_eq!(known_at(&mut unwinder, other, 5), None);
    assert_eq!(known_at(&mut unwinder, unknown, 5), None);
    // Of the call before it, a return address has the rule.
    known_at(&mut unwinder, one, 6);
    unwinder.is_exact = 0;
    assert_eq!(unwinder.known_rule(), Some(from_sp(16, 0)));
    unwinder.forget_rules();
    assert_eq!(known_at(&mut unwinder, one, 5), None);
}

#[test]
fn code_that_was_not_looked_at_yet_is_followed_in_doubt() {
    let (tables, process) = tables(&[(0, Rule::UNSEEN), (0x100, Rule::NONE)]);
    let mut memory = Memory::<X86_64>::new(vec![STACK + 32, TEXT + 0x110, 0]);
    let mut unwinder = Unwinder::EMPTY;
    unwinder.enter(process);
    unwinder.start(at(5, STACK));
    assert!(unwinder.find_mapping(&tables));
    let rule = unwinder.find_rule(&tables);
    assert_eq!(unwinder.step(rule, &mut memory, &tables), Step::Caller);
    assert_eq!(
        (unwinder.registers.ip, unwinder.doubt),
        (TEXT + 0x110, LOST)
    );
}

#[test]
fn frame_is_known_by_another_register_where_that_is_exact() {
    let rows = [(0, Rule::wide(0).unwrap()), (0x200, Rule::ROOT)];
    let stack = [0, 0, 0, TEXT + 0x10, 0, TEXT + 0x210];
    let (frame, none) = (STACK + 16, at(5, 0));
    let scratch = |scratch| Registers { scratch, ..none };
    let aligned = Registers {
        aligned: frame,
        ..none
    };
    for (cfa_base, registers) in [
        (BASE_ALIGNED, aligned),
        (BASE_FIRST_SCRATCH, scratch([frame, 0])),
        (BASE_SECOND_SCRATCH, scratch([0, frame])),
    ] {
        let wide = WideRule {
            cfa_base,
            cfa_offset: 16,
            ra_offset: -8,
            ..WideRule::default()
        };
        // Behind the call in the same code the register is another function's.
        let expected = (&[0x10][..], StopReason::NoUnwindTable);
        check::<X86_64>(&rows, &[wide], registers, &stack, expected);
        check::<Aarch64>(&rows, &[wide], registers, &stack, expected);
    }
}

#[test]
fn one_of_two_frames_is_told_by_the_return_address() {
    let wide = WideRule {
        cfa_base: BASE_BY_CALLER,
        cfa_offset: 16,
        cfa_is_read: 0x210,
        cfa_addend: 16,
        fp_rule: FP_AT_CFA,
        fp_offset: -16,
        ra_offset: -8,
        ..WideRule::default()
    };
    let root = (0x300, Rule::ROOT);
    let rows = [(0, Rule::wide(0).unwrap()), (0x200, Rule::ROOT)];
    let rows_of_the_other = [rows[0], (0x200, Rule::FRAME_POINTER), root];
    let first = [0, TEXT + 0x210, 0, 0];
    // Any other address of code, or one far from it.
    let code = [0, TEXT + 0x310, STACK + 32, TEXT + 0x220, 0, TEXT + 0x310];
    let data = [0, STACK + 0x210, STACK + 32, TEXT + 0x220, 0, TEXT + 0x310];
    let root = StopReason::Root;
    check::<X86_64>(&rows, &[wide], at(5, 0), &first, (&[0x210], root));
    check::<Aarch64>(&rows, &[wide], at(5, 0), &first, (&[0x210], root));
    let expected = (&[0x220, 0x310][..], root);
    for stack in [code, data] {
        check::<X86_64>(&rows_of_the_other, &[wide], at(5, 0), &stack, expected);
        check::<Aarch64>(&rows_of_the_other, &[wide], at(5, 0), &stack, expected);
    }
}

#[test]
fn thread_begins_where_its_parent_goes_on_from() {
    let rows = [(0, Rule::NEW_THREAD), (0x200, Rule::ROOT)];
    // What lies on top of a new thread's stack looks like a return address.
    let stack = [TEXT + 0x210, 0];
    for (result, callers) in [(0, &[][..]), (7, &[0x210][..])] {
        let registers = Registers {
            result,
            link: TEXT + 0x210,
            ..at(5, 0)
        };
        check::<X86_64>(&rows, &[], registers, &stack, (callers, StopReason::Root));
        check::<Aarch64>(&rows, &[], registers, &stack, (callers, StopReason::Root));
    }
}

#[test]
fn stack_is_switched_downwards_where_a_row_says_so_and_only_there() {
    let stack = [STACK + 64, TEXT + 0x210, 0, 0, 0, 0, 0, 0, 0, TEXT + 0x310];
    let registers = Registers {
        sp: STACK + 32,
        ..at(5, STACK)
    };
    let root = (0x300, Rule::ROOT);
    let rows = [(0, Rule::SWITCH), (0x200, Rule::FRAME_POINTER), root];
    let expected = (&[0x210, 0x310][..], StopReason::Root);
    check::<X86_64>(&rows, &[], registers, &stack, expected);
    check::<Aarch64>(&rows, &[], registers, &stack, expected);
    let wide = |cfa_base| WideRule {
        cfa_base,
        cfa_offset: 16,
        fp_rule: FP_AT_CFA,
        fp_offset: -16,
        ra_offset: -8,
        ..WideRule::default()
    };
    let rows = [(0, Rule::wide(0).unwrap()), rows[1], root];
    let other = [wide(BASE_OTHER_STACK)];
    check::<X86_64>(&rows, &other, registers, &stack, expected);
    check::<Aarch64>(&rows, &other, registers, &stack, expected);
    let expected = (&[][..], StopReason::NoUnwindTable);
    check::<X86_64>(&rows, &[wide(BASE_FP)], registers, &stack, expected);
    let rows = [(0, Rule::FRAME_POINTER), root];
    let expected = (&[][..], StopReason::NoUnwindTable);
    check::<X86_64>(&rows, &[], registers, &stack, expected);
}

#[test]
fn stacks_that_switch_in_a_circle_end() {
    // Two records that lead to each other, of code that switches stacks.
    let stack = [STACK + 16, TEXT + 1, STACK, TEXT + 2];
    let rows = [(0, Rule::SWITCH)];
    let (tables, process) = tables(&rows);
    for sp in [STACK, STACK + 64] {
        let registers = Registers { sp, ..at(5, STACK) };
        let mut memory = Memory::<X86_64>::new(stack.to_vec());
        let (ips, reason) = walk(registers, &mut memory, &tables, process);
        assert_eq!(reason, StopReason::NoUnwindTable);
        assert!(ips.len() as u32 <= 2 * MAX_DESCENTS + 2, "{ips:x?}");
    }
}

fn any_words_and_any_tables_end<A: Arch>(seed: u64) {
    let mut seed = seed;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    const WORDS: usize = 300;
    let mut deepest = 0;
    for _ in 0..3000 {
        let words = (0..WORDS)
            .map(|_| match next() & 15 {
                0 => next(),
                1 => STACK + next() % (WORDS as u64 * 8),
                2..6 => STACK + next() % WORDS as u64 * 8,
                _ => TEXT + next() % 0x400,
            })
            .collect();
        let mut memory = Memory::<A>::new(words);
        let rows = (0..0x40).map(|index| {
            let rule = match next() & 15 {
                0 => Rule::SPECIAL << 22 | next() as u32 & 0x180f,
                1 | 2 => Rule::WIDE << 22 | next() as u32 & 3,
                _ => next() as u32 & 0x0040_1003 | 0x800,
            };
            (index * 16, Rule(rule))
        });
        let (mut tables, process) = tables(&rows.collect::<Vec<_>>());
        if next() & 1 == 0 {
            // The agent may be writing there.
            let at = next() as usize % tables.words.len();
            tables.words[at] = next() as u32;
        }
        let wide = (0..3).map(|_| WideRule {
            cfa_base: next() as u32 % 7,
            cfa_offset: (next() as i32) >> 20,
            cfa_is_read: next() as u32 & 1,
            cfa_addend: (next() as i32) >> (next() & 31),
            fp_rule: next() as u32 & 3,
            fp_offset: (next() as i32) >> 20,
            ra_rule: next() as u32 & 1,
            ra_offset: (next() as i32) >> 20,
        });
        tables.wide = wide.collect();
        let registers = Registers {
            ip: TEXT + next() % 0x400,
            sp: STACK + (next() % WORDS as u64) * 8,
            fp: STACK + (next() % WORDS as u64) * 8,
            link: TEXT + next() % 0x400,
            aligned: STACK + next() % 2400,
            result: next() & 1,
            scratch: [STACK + next() % 2400, STACK + next() % 2400],
        };
        let (ips, _) = walk(registers, &mut memory, &tables, process);
        deepest = deepest.max(ips.len());
        // Frames rise by a word at least on each of the stacks, and one may be under the leaf.
        assert!(
            ips.len() <= (WORDS + 2) * (MAX_DESCENTS as usize + 1),
            "{}",
            ips.len()
        );
    }
    assert!(deepest >= 6, "nothing was unwound: {deepest}");
}

#[test]
fn any_words_and_any_tables_end_within_the_memory() {
    any_words_and_any_tables_end::<X86_64>(0x9e37_79b9_7f4a_7c15);
    any_words_and_any_tables_end::<Aarch64>(0xd1b5_4a32_d192_ed03);
}
