//! How Go's frames look on x86-64.
//!
//! The depth table says where the return address is, at every instruction. Where the caller's
//! frame pointer is, the code says: since Go 1.21 a function with a frame begins with
//! `push rbp; mov rbp, rsp; sub rsp, N`, before that with `sub rsp, N; mov [rsp+N-8], rbp;
//! lea rbp, [rsp+N-8]` (`preprocess` in `cmd/internal/obj/x86/obj6.go`). Go itself does not need it
//! where depths are known; C code up the stack, and the switches between stacks, do.

use std::ops::Range;

use hotspan_abi::unwind::{BASE_SP, FP_AT_CFA, FP_SAME, RA_AT_CFA, Rule, WideRule};

use super::{
    AnyRule, Arch,
    frames::{Machine, Save},
};
use crate::process::pclntab::PcValue;

pub(super) const AMD64: Machine = Machine {
    rule: from_stack_pointer,
    arch: Arch::X86_64,
    record_below: |_| 16,
    find_save,
    stack_pointer_writes,
    replaces_frame_pointer,
    push: |_| None,
    behind_call,
    both_threads,
    starts: &[b"_rt0_amd64", b"_rt0_amd64_linux"],
};

/// Bytes of a stack segment's code that are searched for the instruction that saves the frame
/// pointer: assembly saves others before it.
const SAVE_SEARCH_BYTES: usize = 96;
/// Functions that switch stacks are short; of longer ones only the start is searched.
const SWITCH_SEARCH_BYTES: usize = 4096;
/// Writes of the stack pointer in one function that are looked at.
const MAX_WRITES: usize = 16;

fn from_stack_pointer(depth: i64, saved_below: i64) -> AnyRule {
    let cfa = depth + 8;
    if depth < 0 {
        // The return address is in a register (`rawVforkSyscall`): the caller is lost, but its
        // frame pointer leads on.
        return Rule::FRAME_POINTER.into();
    }
    if let Some(rule) = Rule::from_register(Rule::FROM_SP, cfa, saved_below) {
        return rule.into();
    }
    AnyRule::Wide(WideRule {
        cfa_base: BASE_SP,
        // Depths have 32 bits; a frame that does not leave room for the return address is none.
        cfa_offset: i32::try_from(cfa).unwrap_or(i32::MAX),
        fp_rule: if saved_below == 0 { FP_SAME } else { FP_AT_CFA },
        fp_offset: i32::try_from(-saved_below).unwrap_or(0),
        ra_rule: RA_AT_CFA,
        ra_offset: -8,
        ..WideRule::default()
    })
}

/// Finds where the caller's frame pointer is saved.
fn find_save(values: &[PcValue], code: &[u8], entry: u64) -> Option<Save> {
    values
        .iter()
        .filter(|value| value.value > 0)
        .find_map(|PcValue { range, value }| {
            let at = usize::try_from(range.start - entry).ok()?;
            let after = code.get(at..)?;
            let is_pushed = *value == 8 && is_push_of_frame_pointer(code.get(..at)?, after);
            if is_pushed {
                return Some(Save {
                    from: range.start,
                    below: 16,
                });
            }
            let len = usize::try_from(range.end - range.start).ok()?;
            find_store(&after[..after.len().min(len)], range.start, (*value).into())
        })
}

/// Whether code ends with `push rbp`. The same byte ends `push r13`, after a prefix that may as well
/// be the end of the instruction before: then only `mov rbp, rsp` behind it tells.
fn is_push_of_frame_pointer(code: &[u8], after: &[u8]) -> bool {
    match code {
        [.., prefix, 0x55] if prefix & 0xf1 == 0x41 => after.starts_with(&[0x48, 0x89, 0xe5]),
        [.., 0x55] => true,
        _ => false,
    }
}

/// Finds `mov [rsp+offset], rbp`.
fn find_store(code: &[u8], start: u64, depth: i64) -> Option<Save> {
    let code = &code[..code.len().min(SAVE_SEARCH_BYTES)];
    (0..code.len()).find_map(|at| {
        let (offset, len) = match code[at..] {
            [0x48, 0x89, 0x2c, 0x24, ..] => (0, 4),
            [0x48, 0x89, 0x6c, 0x24, offset, ..] => (i64::from(offset as i8), 5),
            [0x48, 0x89, 0xac, 0x24, a, b, c, d, ..] => {
                (i64::from(i32::from_le_bytes([a, b, c, d])), 8)
            }
            _ => return None,
        };
        let below = depth + 8 - offset;
        (below % 8 == 0 && (16..=depth + 8).contains(&below)).then_some(Save {
            from: start + at as u64 + len,
            below,
        })
    })
}

/// Whether `mov rbp, 0` comes next, in either of its encodings, or `mov rbp, [register+byte]`.
fn replaces_frame_pointer(code: &[u8]) -> bool {
    match code {
        [0x31, 0xed, ..] | [0x48, 0xc7, 0xc5, 0, 0, 0, 0, ..] => true,
        [0x48 | 0x49, 0x8b, modrm, ..] => modrm & 0xf8 == 0x68,
        _ => false,
    }
}

/// The address behind a call of a function.
fn behind_call(code: &[u8], entry: u64, callee: u64) -> Option<u64> {
    let code = &code[..code.len().min(SWITCH_SEARCH_BYTES)];
    let mut calls = code
        .windows(5)
        .enumerate()
        .filter(|(_, bytes)| bytes[0] == 0xe8);
    calls.find_map(|(at, bytes)| {
        let behind = entry + at as u64 + 5;
        let to = i32::from_le_bytes(bytes[1..].try_into().ok()?);
        (behind.wrapping_add_signed(to.into()) == callee).then_some(behind)
    })
}

/// From the system call to where the child takes its stack.
fn both_threads(code: &[u8], entry: u64) -> Option<Range<u64>> {
    let call = code.windows(2).position(|bytes| bytes == SYSCALL)?;
    let writes = stack_pointer_writes(code, entry);
    Some(entry + (call + SYSCALL.len()) as u64..*writes.first()?)
}

/// `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Addresses behind instructions that write the stack pointer, other than by a constant.
fn stack_pointer_writes(code: &[u8], entry: u64) -> Vec<u64> {
    let code = &code[..code.len().min(SWITCH_SEARCH_BYTES)];
    let mut writes = Vec::new();
    let mut at = 0;
    while at < code.len() && writes.len() < MAX_WRITES {
        let len = match code[at..] {
            // mov rsp, reg
            [0x48 | 0x4c, 0x89, modrm, ..] if modrm & 0xc7 == 0xc4 => 3,
            [0x48 | 0x49, 0x8b, modrm, ..] if modrm & 0xf8 == 0xe0 => 3,
            // mov rsp, [reg+byte]
            [0x48 | 0x49, 0x8b, modrm, _, ..] if modrm & 0xf8 == 0x60 && modrm & 7 != 4 => 4,
            // mov rsp, [reg]
            [0x48 | 0x49, 0x8b, modrm, ..]
                if modrm & 0xf8 == 0x20 && ![4, 5].contains(&(modrm & 7)) =>
            {
                3
            }
            // and rsp, byte
            [0x48, 0x83, 0xe4, _, ..] => 4,
            _ => 0,
        };
        at += len.max(1);
        if len > 0 {
            writes.push(entry + at as u64);
        }
    }
    writes
}
