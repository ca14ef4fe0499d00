//! How Go's frames look on arm64.
//!
//! A function with a frame stores the return address at the bottom of it, and the caller's frame
//! pointer in the word below, under the stack pointer; then it points the frame pointer there
//! (`preprocess` in `cmd/internal/obj/arm64/obj7.go`). The depth table says how large the frame is;
//! where it is zero the return address is in its register.

use std::ops::Range;

use hotspan_abi::unwind::{FP_AT_CFA, FP_SAME, RA_AT_CFA, Rule, WideRule};

use super::{
    AnyRule, Arch,
    frames::{Machine, Save},
};
use crate::process::pclntab::PcValue;

pub(super) const ARM64: Machine = Machine {
    rule,
    arch: Arch::Aarch64,
    record_below: |depth| depth + 8,
    find_save,
    stack_pointer_writes,
    replaces_frame_pointer,
    push,
    behind_call,
    both_threads,
    starts: &[b"_rt0_arm64_linux", b"main"],
};

/// Functions that switch stacks are short; of longer ones only the start is searched.
const SWITCH_SEARCH_WORDS: usize = 1024;
/// Writes of the stack pointer in one function that are looked at.
const MAX_WRITES: usize = 16;

/// `stur x29, [sp, #-8]`, and for large frames `stp x29, x30, [x20, #-8]`.
const SAVES: [u32; 2] = [0xf81f_83fd, 0xa93f_fa9d];
/// `mov x29, #0`, which is written so or as a copy of the register that is zero.
const CLEAR_X29: [u32; 2] = [0xd280_001d, 0xaa1f_03fd];
const RET: u32 = 0xd65f_03c0;
/// `svc #0`.
const SVC: u32 = 0xd400_0001;

fn words(code: &[u8]) -> impl Iterator<Item = u32> + Clone {
    let (words, _) = code.as_chunks::<4>();
    words.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

fn rule(depth: i64, saved_below: i64) -> AnyRule {
    if depth <= 0 {
        return Rule::link(0).unwrap_or(Rule::NONE).into();
    }
    // With a frame pointer or without, a rule of 24 bits has the return address at the bottom.
    if (saved_below == 0 || saved_below == depth + 8)
        && let Some(rule) = Rule::from_register(Rule::FROM_SP, depth, saved_below)
    {
        return rule.into();
    }
    AnyRule::Wide(WideRule {
        // Depths have 32 bits.
        cfa_offset: i32::try_from(depth).unwrap_or(i32::MAX),
        fp_rule: if saved_below == 0 { FP_SAME } else { FP_AT_CFA },
        fp_offset: i32::try_from(-saved_below).unwrap_or(0),
        ra_rule: RA_AT_CFA,
        ra_offset: i32::try_from(-depth).unwrap_or(0),
        ..WideRule::default()
    })
}

fn find_save(values: &[PcValue], code: &[u8], entry: u64) -> Option<Save> {
    let deep = values.iter().find(|value| value.value > 0)?;
    // It comes right behind the instruction that makes the frame, or before it.
    let near = usize::try_from(deep.range.start - entry).ok()? / 4 + 2;
    let at = words(code)
        .take(near)
        .position(|word| SAVES.contains(&word))?;
    Some(Save {
        from: entry + 4 * at as u64 + 4,
        below: i64::from(deep.value) + 8,
    })
}

/// `mov sp, register`.
fn stack_pointer_writes(code: &[u8], entry: u64) -> Vec<u64> {
    let words = words(code).take(SWITCH_SEARCH_WORDS).enumerate();
    let writes = words.filter(|(_, word)| word & 0xffff_fc1f == 0x9100_001f);
    let behind = writes.map(|(at, _)| entry + 4 * at as u64 + 4);
    behind.take(MAX_WRITES).collect()
}

/// Whether `mov x29, #0` or `ldr x29, [register, offset]` comes next.
fn replaces_frame_pointer(code: &[u8]) -> bool {
    words(code)
        .next()
        .is_some_and(|word| CLEAR_X29.contains(&word) || word & 0xffc0_001f == 0xf940_001d)
}

/// `str register, [sp, #-bytes]!`, among the next instructions.
fn push(code: &[u8]) -> Option<(u64, i64)> {
    let mut next = words(code).take(8).enumerate();
    next.find_map(|(at, word)| {
        // Nine bits with a sign.
        let to = i64::from((word << 11).cast_signed() >> 23);
        let is_push = word & 0xffe0_0fe0 == 0xf800_0fe0 && to < 0;
        is_push.then_some((4 * at as u64 + 4, -to))
    })
}

/// The address behind a call of a function: `bl`.
fn behind_call(code: &[u8], entry: u64, callee: u64) -> Option<u64> {
    let words = words(code).take(SWITCH_SEARCH_WORDS).enumerate();
    let mut calls = words.filter(|(_, word)| word >> 26 == 0b10_0101);
    calls.find_map(|(at, word)| {
        let call = entry + 4 * at as u64;
        // 26 bits with a sign, in words.
        let to = i64::from((word << 6).cast_signed() >> 6) * 4;
        (call.wrapping_add_signed(to) == callee).then_some(call + 4)
    })
}

/// From the system call to where the parent returns, before the child's code.
fn both_threads(code: &[u8], entry: u64) -> Option<Range<u64>> {
    let behind = |wanted| {
        let at = words(code).position(|word| word == wanted)?;
        Some(entry + 4 * at as u64 + 4)
    };
    Some(behind(SVC)?..behind(RET)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The end of `morestack` of Go 1.24: mov sp, x0; ldr x29, [x28, #104]; str xzr, [sp, #-16]!; bl newstack.
    const MORESTACK: [u32; 4] = [0x9100_001f, 0xf940_379d, 0xf81f_0fff, 0x9400_0f71];

    #[test]
    fn a_frame_pointer_that_is_replaced_is_seen() {
        for word in [MORESTACK[1], 0xaa1f_03fd, 0xd280_001d] {
            assert!(replaces_frame_pointer(&code(&[word])));
        }
        assert!(!replaces_frame_pointer(&code(&[MORESTACK[0]])));
        assert!(!replaces_frame_pointer(&[]));
    }

    #[test]
    fn a_store_that_makes_room_is_a_push() {
        assert_eq!(push(&code(&MORESTACK)), Some((12, 16)));
        // The same without a change of sp, and with one up.
        assert_eq!(push(&code(&[0xf81f_03ff, 0xf801_0fff])), None);
    }

    #[test]
    fn calls_are_found_before_and_behind() {
        let at = |callee| behind_call(&code(&MORESTACK), 0x8000, callee);
        assert_eq!(at(0x800c + 4 * 0xf71), Some(0x8010));
        assert_eq!(at(0x800c), None);
        let back = code(&[0x97ff_fffe]);
        assert_eq!(behind_call(&back, 0x8000, 0x7ff8), Some(0x8004));
    }
}
