//! arm64. Sources: DWARF for the Arm 64-bit Architecture, §4.1 (register numbers); AAPCS64, §6.4.6
//! (frame records).

use gimli::{AArch64, Vendor};
use hotspan_abi::unwind::Rule;

use super::{Facts, Landmark, SignalRow};
use crate::unwind::{
    bare_code::flow::{Effect, Flow, Instruction},
    cfi::Saved,
};

pub(super) const FACTS: Facts = Facts {
    elf_machine: object::elf::EM_AARCH64,
    vendor: Vendor::AArch64,
    stack_pointer: AArch64::SP,
    frame_pointer: AArch64::X29,
    return_address: AArch64::X30,
    link: AArch64::X30,
    aligned: AArch64::X19,
    scratch: [AArch64::X9, AArch64::X12],
    names: ["sp", "x29", "x19", "x9", "x12"],
    link_name: "x30",
    pops_silently: false,
    return_address_offset,
    is_signal,
    plt_push: |_| None,
    landmarks: &[RT_SIGRETURN, CLONE],
    just_called: JUST_CALLED,
    call_pushes: 0,
    red_zone_bytes: 0,
    decode,
    jumps_from_addresses: true,
    // Its entries leave the stack alone, which their instructions say.
    linkage_table: |_, _| Vec::new(),
    keeps_frame_pointer,
    restore_entry,
    // That of musl needs 28, that of glibc's dynamic linker 16.
    start_bytes: 32,
};

/// The return address is in its register.
const JUST_CALLED: Rule = match Rule::link(0) {
    Some(rule) => rule,
    None => Rule::NONE,
};

/// Behind the frame pointer, with which it is stored; else at the bottom of the frame.
fn return_address_offset(cfa: i64, fp: i64) -> i64 {
    if fp == 0 { -cfa } else { 8 - fp }
}

/// Kernels from 5.8 on say nothing of the trampoline in their vDSO. Before, they marked it, with
/// rules that skip what the signal interrupted.
fn is_signal(row: &SignalRow) -> bool {
    row.is_marked && row.cfa.register == AArch64::X29 && row.ra == Saved::AtCfa(8)
}

/// Trampolines of signals, which the kernel's vDSO and musl have: `mov x8, #139; svc #0`. They are
/// returned to at their first byte, and the byte before a return address is looked up.
const RT_SIGRETURN: Landmark = Landmark {
    code: b"\x68\x11\x80\xd2\x01\x00\x00\xd4",
    rules: &[(-1, Rule::SIGNAL)],
};

/// The end of musl's `__clone` (src/thread/aarch64/clone.s): `cbz x0, 1f; ret; 1: ldp x1, x0, [sp],
/// #16; blr x1; mov x8, #93; svc #0`, where the new thread begins.
const CLONE: Landmark = Landmark {
    code: b"\x40\x00\x00\xb4\xc0\x03\x5f\xd6\xe1\x03\xc1\xa8\
            \x20\x00\x3f\xd6\xa8\x0b\x80\xd2\x01\x00\x00\xd4",
    rules: &[(0, Rule::NEW_THREAD), (8, Rule::ROOT)],
};

/// Whether code keeps frame pointers: it has a prologue `stp x29, x30, [sp, #-N]!; mov x29, sp` for
/// each 2 KiB.
fn keeps_frame_pointer(code: &[u8]) -> bool {
    let (words, _) = code.as_chunks::<4>();
    let is_prologue = |pair: &[[u8; 4]]| {
        let [store, copy] = [pair[0], pair[1]].map(u32::from_le_bytes);
        store & 0xffc0_7fff == 0xa980_7bfd && copy == 0x9100_03fd
    };
    let prologues = words.windows(2).filter(|pair| is_prologue(pair)).count();
    prologues > 0 && prologues * 2048 >= code.len()
}

/// A jump lies over the first instruction, which does nothing (OpenJDK, `MacroAssembler::verified_entry`).
fn restore_entry(entry: &mut [u8], _: i64) {
    if let Some(first) = entry.first_chunk_mut::<4>()
        && u32::from_le_bytes(*first) & 0xfc00_0000 == 0x1400_0000
    {
        *first = 0xd503_201f_u32.to_le_bytes(); // nop
    }
}

/// The instruction at the start of code. Source: Arm Architecture Reference Manual for A-profile,
/// C4.1.
fn decode(code: &[u8], addr: u64) -> Instruction {
    let word = code.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let Some(word) = word else {
        return Instruction {
            bytes: code.len(),
            effect: Effect::default(),
            flow: Flow::End,
            refers_to: None,
            is_entry: false,
            is_padding: false,
        };
    };
    Instruction {
        bytes: 4,
        effect: effect(word),
        flow: flow(word, addr),
        // adr
        refers_to: (word & 0x9f00_0000 == 0x1000_0000).then(|| {
            let high = signed(word, 5, 19) << 2;
            addr.wrapping_add_signed(high | i64::from(word >> 29 & 3))
        }),
        // paciasp, pacibsp, bti c
        is_entry: [0xd503_233f, 0xd503_237f, 0xd503_245f].contains(&word),
        // nop, udf
        is_padding: word == 0xd503_201f || word == 0,
    }
}

/// A field of a word, with its sign.
fn signed(word: u32, low: u32, bits: u32) -> i64 {
    i64::from((word << (32 - low - bits)) as i32 >> (32 - bits))
}

const FP: u32 = 29;
const LR: u32 = 30;
const SP: u32 = 31;

fn flow(word: u32, addr: u64) -> Flow {
    let to = |low, bits| addr.wrapping_add_signed(signed(word, low, bits) * 4);
    match word {
        // b, bl
        _ if word >> 26 == 0b000101 => Flow::Jump(to(0, 26)),
        _ if word >> 26 == 0b100101 => Flow::Call(to(0, 26)),
        // b.cond; cbz, cbnz; tbz, tbnz
        _ if word >> 24 == 0x54 => Flow::Branch(to(5, 19)),
        _ if word & 0x7e00_0000 == 0x3400_0000 => Flow::Branch(to(5, 19)),
        _ if word & 0x7e00_0000 == 0x3600_0000 => Flow::Branch(to(5, 14)),
        // br; blr; ret; all also with the check of a signature
        _ if word & 0xfeff_f000 == 0xd61f_0000 => Flow::ComputedJump,
        _ if word & 0xfeff_f000 == 0xd63f_0000 => Flow::ComputedCall,
        _ if word & 0xffff_f000 == 0xd65f_0000 => Flow::Return,
        // brk, udf
        _ if word & 0xffe0_001f == 0xd420_0000 || word >> 16 == 0 => Flow::End,
        _ => Flow::Next,
    }
}

fn effect(word: u32) -> Effect {
    let (to, from) = (word & 31, word >> 5 & 31);
    match word {
        // Loads and stores of pairs: which way, how the address changes, and of which size.
        _ if word & 0x3a00_0000 == 0x2800_0000 => pair(word),
        // Loads and stores of one register.
        _ if word & 0x3b20_0000 == 0x3800_0000 || word & 0x3b00_0000 == 0x3900_0000 => single(word),
        // add, sub of a constant
        _ if word & 0xbf00_0000 == 0x9100_0000
            && [to, from].iter().any(|r| *r == SP || *r == FP) =>
        {
            let constant = i64::from(word >> 10 & 0xfff) << (12 * (word >> 22 & 1));
            let constant = if word >> 30 & 1 == 1 {
                -constant
            } else {
                constant
            };
            match (to, from) {
                (SP, SP) => Effect {
                    moves_after: constant,
                    ..Effect::default()
                },
                (FP, SP) => Effect {
                    fp_from_sp: Some(constant),
                    ..Effect::default()
                },
                (SP, FP) => Effect {
                    sp_from_fp: Some(constant),
                    ..Effect::default()
                },
                _ => loses(to),
            }
        }
        // add, sub of a register that is extended; and with a constant
        _ if word & 0xbfe0_0000 == 0x8b20_0000 || word & 0xff80_0000 == 0x9200_0000 => loses(to),
        // mov of a register
        _ if word & 0xffe0_ffe0 == 0xaa00_03e0 && to == FP => loses(to),
        _ => Effect::default(),
    }
}

fn loses(register: u32) -> Effect {
    Effect {
        loses_sp: register == SP,
        loses_fp: register == FP,
        ..Effect::default()
    }
}

/// What a load or store does with these registers, at so much above the stack pointer each.
fn transfer(word: u32, is_load: bool, registers: &[(u32, i64)]) -> Effect {
    let mut effect = Effect::default();
    // Vector registers have the same numbers.
    if word >> 26 & 1 == 1 {
        return effect;
    }
    for &(register, place) in registers {
        match (register, is_load) {
            (FP, false) => effect.stores_fp = Some(place),
            (FP, true) => effect.loads_fp = Some(place),
            (LR, false) => effect.stores_ra = Some(place),
            (LR, true) => effect.loads_ra = Some(place),
            _ => {}
        }
    }
    effect
}

fn pair(word: u32) -> Effect {
    let (first, base, second) = (word & 31, word >> 5 & 31, word >> 10 & 31);
    let is_load = word >> 22 & 1 == 1;
    if base != SP {
        let loads_fp = is_load && word >> 26 & 1 == 0 && (first == FP || second == FP);
        return if loads_fp {
            loses(FP)
        } else {
            Effect::default()
        };
    }
    let is_vector = word >> 26 & 1 == 1;
    let size = match (word >> 30, is_vector) {
        (size, true) => 4 << size,
        (2, false) => 8,
        _ => 4,
    };
    let offset = signed(word, 15, 7) * size;
    // 1: added behind, 2: not added, 3: added before; 0: as 2.
    let (before, place, after) = match word >> 23 & 3 {
        1 => (0, 0, offset),
        3 => (offset, 0, 0),
        _ => (0, offset, 0),
    };
    let is_word = word >> 30 == 2;
    let registers = [(first, place), (second, place + size)];
    let registers = if is_word { &registers[..] } else { &[] };
    Effect {
        moves_before: before,
        moves_after: after,
        ..transfer(word, is_load, registers)
    }
}

fn single(word: u32) -> Effect {
    let (register, base) = (word & 31, word >> 5 & 31);
    let is_word = word >> 30 == 3;
    let is_load = word >> 22 & 3 == 1;
    if base != SP {
        let loads_fp = is_load && is_word && word >> 26 & 1 == 0 && register == FP;
        return if loads_fp {
            loses(FP)
        } else {
            Effect::default()
        };
    }
    let (before, place, after) = if word >> 24 & 1 == 1 {
        (0, i64::from(word >> 10 & 0xfff) << (word >> 30), 0)
    } else {
        let offset = signed(word, 12, 9);
        match word >> 10 & 3 {
            1 => (0, 0, offset),
            3 => (offset, 0, 0),
            _ => (0, offset, 0),
        }
    };
    let registers = if is_word {
        &[(register, place)][..]
    } else {
        &[]
    };
    Effect {
        moves_before: before,
        moves_after: after,
        ..transfer(word, is_load, registers)
    }
}
