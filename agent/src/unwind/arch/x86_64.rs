//! x86-64. Sources: System V ABI, AMD64 supplement, figure 3.36 (register numbers); binutils
//! `bfd/elfxx-x86.c` (what linkers say of a procedure linkage table).

use std::ops::Range;

use gimli::{Vendor, X86_64};
use hotspan_abi::unwind::Rule;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction as Decoded, Mnemonic, OpKind,
    Register as Named,
};

use super::{Address, Facts, Landmark, SignalRow};
use crate::unwind::{
    bare_code::flow::{Effect, Flow, Instruction},
    cfi::Saved,
};

pub(super) const FACTS: Facts = Facts {
    elf_machine: object::elf::EM_X86_64,
    vendor: Vendor::Default,
    stack_pointer: X86_64::RSP,
    frame_pointer: X86_64::RBP,
    return_address: X86_64::RA,
    link: X86_64::RDI,
    aligned: X86_64::RBX,
    scratch: [X86_64::R10, X86_64::R11],
    names: ["rsp", "rbp", "rbx", "r10", "r11"],
    link_name: "rdi",
    pops_silently: true,
    // A call pushes it last.
    return_address_offset: |_, _| -8,
    is_signal,
    plt_push,
    landmarks: LANDMARKS,
    just_called: FRAMELESS,
    call_pushes: 8,
    red_zone_bytes: 128,
    decode,
    jumps_from_addresses: false,
    linkage_table,
    keeps_frame_pointer,
    restore_entry,
    // musl's start needs 22 bytes, that of glibc's dynamic linker 64.
    start_bytes: 64,
};

/// Where a signal trampoline finds the interrupted stack pointer: `ucontext.uc_mcontext.gregs[15]`
/// of `struct rt_sigframe`, whose first word was the trampoline's address and is popped.
const SIGNAL_CFA: Address = Address {
    register: X86_64::RSP,
    offset: 160,
    read: Some(0),
};

/// Either sign will do: some trampolines lack the mark, and marked code may have plain rules.
fn is_signal(row: &SignalRow) -> bool {
    (row.is_marked || matches!(row.ra, Saved::AtExpression(_))) && row.cfa == SIGNAL_CFA
}

/// Recognizes `rsp + 8 + ((rip & 15) >= push) * 8`, which linkers write for a procedure linkage
/// table: entries push at offset 11, or at 9 or 10 with `endbr64`, or at 5.
fn plt_push(expression: &[u8]) -> Option<u64> {
    use gimli::constants as c;
    const LIT0: u8 = c::DW_OP_lit0.0;
    let &[
        0x77, // DW_OP_breg7, which is the stack pointer
        8,
        0x80, // DW_OP_breg16, which is the instruction pointer
        0,
        mask,
        and,
        push @ LIT0..=0x3f,
        ge,
        shift,
        shl,
        plus,
    ] = expression
    else {
        return None;
    };
    let rest = [mask, and, ge, shift, shl, plus];
    let expected = [
        LIT0 + 15,
        c::DW_OP_and.0,
        c::DW_OP_ge.0,
        LIT0 + 3,
        c::DW_OP_shl.0,
        c::DW_OP_plus.0,
    ];
    (rest == expected).then_some(u64::from(push - LIT0))
}

/// Bytes of an entry of a procedure linkage table.
pub(in crate::unwind) const PLT_ENTRY_BYTES: u64 = 16;
/// Where entries push for which there is [`Rule::PLT`].
pub(in crate::unwind) const PLT_PUSH: u64 = 11;

/// The rule within an entry, before or behind its push.
pub(in crate::unwind) const fn plt_rule(is_pushed: bool) -> Rule {
    frameless_above(if is_pushed { 8 } else { 0 })
}

/// The rule of code that pushed so many bytes, and no frame pointer.
const fn frameless_above(bytes: i64) -> Rule {
    match Rule::from_register(Rule::FROM_SP, 8 + bytes, 0) {
        Some(rule) => rule,
        None => Rule::NONE,
    }
}

/// Whether these 16 bytes are an entry: `jmp *(%rip)`, `push`, `jmp`.
fn is_plt_entry(code: &[u8]) -> bool {
    matches!(
        code,
        [0xff, 0x25, _, _, _, _, 0x68, _, _, _, _, 0xe9, _, _, _, _]
    )
}

/// Finds a procedure linkage table.
fn linkage_table(code: &[u8], start: u64) -> Vec<(Range<u64>, Rule)> {
    let aligned = start.next_multiple_of(PLT_ENTRY_BYTES) - start;
    let entries = code.get(aligned as usize..).unwrap_or_default();
    let mut entries = entries
        .chunks_exact(PLT_ENTRY_BYTES as usize)
        .map(is_plt_entry)
        .skip(1);
    let Some(before) = entries.position(|is_entry| is_entry) else {
        return Vec::new();
    };
    let count = 1 + entries.take_while(|is_entry| *is_entry).count() as u64;
    // The first entry is another: it pushes a second word, above what the others pushed, and jumps
    // to the dynamic linker.
    let head = start + aligned + before as u64 * PLT_ENTRY_BYTES;
    let first = head + PLT_ENTRY_BYTES;
    vec![
        (head..head + 6, frameless_above(8)),
        (head + 6..first, frameless_above(16)),
        (first..first + count * PLT_ENTRY_BYTES, Rule::PLT),
    ]
}

/// A function that pushed nothing.
const FRAMELESS: Rule = frameless_above(0);

/// musl writes these in assembly, and says nothing about frames there.
const LANDMARKS: &[Landmark] = &[
    // `__clone` (src/thread/x86_64/clone.s). The new thread has an empty stack from `xor %ebp,%ebp`
    // on; the last instruction, `ret`, is the caller's again.
    Landmark {
        code: b"\x31\xc0\xb0\x38\x49\x89\xfb\x48\x89\xd7\x4c\x89\xc2\x4d\x89\xc8\
                \x4c\x8b\x54\x24\x08\x4d\x89\xd9\x48\x83\xe6\xf0\x48\x83\xee\x08\
                \x48\x89\x0e\x0f\x05\x85\xc0\x75\x0f\x31\xed\x5f\x41\xff\xd1\x89\
                \xc7\x31\xc0\xb0\x3c\x0f\x05\xf4\xc3",
        rules: &[
            (0, FRAMELESS),
            (37, Rule::NEW_THREAD),
            (41, Rule::ROOT),
            (56, FRAMELESS),
        ],
    },
    // `__restore_rt` (src/signal/x86_64/restore.s). It is returned to at its first byte, and the
    // byte before a return address is looked up.
    Landmark {
        code: b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05",
        rules: &[(-1, Rule::SIGNAL)],
    },
];

/// Whether code keeps frame pointers: it has a prologue `push %rbp; mov %rsp,%rbp` for each 2 KiB.
/// Browsers, whose unwind information is left out for its size, have one for each 620 bytes; code
/// without frame pointers has them in the rare function with a variable frame.
fn keeps_frame_pointer(code: &[u8]) -> bool {
    let prologues = code
        .windows(4)
        .filter(|&bytes| bytes == b"\x55\x48\x89\xe5" || bytes == b"\x55\x48\x8b\xec")
        .count();
    prologues > 0 && prologues * 2048 >= code.len()
}

/// A jump of five bytes lies over the first instruction, which has seven: it writes far below the stack
/// pointer to see whether there is room, or in a leaf lowers the stack pointer by less than 64 KiB (OpenJDK,
/// `MacroAssembler::verified_entry`, `NativeJump::patch_verified_entry`).
fn restore_entry(entry: &mut [u8], frame_bytes: i64) {
    let Some(first) = entry.first_chunk_mut::<7>() else {
        return;
    };
    match *first {
        [0xe9, .., 0, 0] => {
            let [a, b, c, d, ..] = (frame_bytes - 8).to_le_bytes();
            *first = [0x48, 0x81, 0xec, a, b, c, d]; // sub $frame,%rsp
        }
        // mov %eax,-0x14000(%rsp)
        [0xe9, ..] => *first = [0x89, 0x84, 0x24, 0x00, 0xc0, 0xfe, 0xff],
        _ => {}
    }
}

/// The instruction at the start of code.
fn decode(code: &[u8], addr: u64) -> Instruction {
    let mut decoder = Decoder::with_ip(64, code, addr, DecoderOptions::NONE);
    let decoded = decoder.decode();
    if decoded.is_invalid() {
        return Instruction {
            bytes: 1,
            effect: Effect::default(),
            flow: Flow::End,
            refers_to: None,
            is_entry: false,
            is_padding: false,
        };
    }
    let refers_to = match decoded.mnemonic() {
        Mnemonic::Lea if decoded.is_ip_rel_memory_operand() => {
            Some(decoded.ip_rel_memory_address())
        }
        // A table of jumps.
        Mnemonic::Jmp if decoded.memory_index_scale() == 8 => Some(decoded.memory_displacement64()),
        _ => None,
    };
    Instruction {
        bytes: decoded.len(),
        effect: effect(&decoded),
        flow: flow(&decoded),
        refers_to,
        is_entry: decoded.mnemonic() == Mnemonic::Endbr64,
        is_padding: matches!(decoded.mnemonic(), Mnemonic::Nop | Mnemonic::Int3),
    }
}

fn flow(decoded: &Decoded) -> Flow {
    let target = decoded.near_branch_target();
    match decoded.flow_control() {
        FlowControl::UnconditionalBranch => Flow::Jump(target),
        FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => Flow::Branch(target),
        FlowControl::IndirectBranch => Flow::ComputedJump,
        FlowControl::Call => Flow::Call(target),
        FlowControl::IndirectCall => Flow::ComputedCall,
        FlowControl::Return => Flow::Return,
        FlowControl::Exception => Flow::End,
        _ if decoded.mnemonic() == Mnemonic::Hlt => Flow::End,
        _ => Flow::Next,
    }
}

fn effect(decoded: &Decoded) -> Effect {
    let (to, from) = (decoded.op0_register(), decoded.op1_register());
    let constant = || decoded.try_immediate(1).map_or(0, |value| value as i64);
    let base = decoded.memory_base();
    let has_no_index = decoded.memory_index() == Named::None;
    let place = || decoded.memory_displacement64() as i64;
    let none = Effect::default();
    match decoded.mnemonic() {
        Mnemonic::Push => Effect {
            moves_before: decoded.stack_pointer_increment().into(),
            stores_fp: (to == Named::RBP).then_some(0),
            pushes: register(to),
            ..none
        },
        Mnemonic::Pop if to == Named::RBP => Effect {
            loads_fp: Some(0),
            moves_after: 8,
            ..none
        },
        Mnemonic::Pop if register(to).is_some() && to != Named::RSP => Effect {
            pops: register(to),
            moves_after: 8,
            ..none
        },
        Mnemonic::And if to == Named::RSP && constant() == -16 => Effect {
            aligns_sp: true,
            ..none
        },
        Mnemonic::Leave => Effect {
            sp_from_fp: Some(0),
            loads_fp: Some(0),
            moves_after: 8,
            ..none
        },
        Mnemonic::Add if to == Named::RSP && decoded.op1_kind() != OpKind::Register => Effect {
            moves_after: constant(),
            ..none
        },
        Mnemonic::Sub if to == Named::RSP && decoded.op1_kind() != OpKind::Register => Effect {
            moves_after: constant().wrapping_neg(),
            ..none
        },
        Mnemonic::Mov if (to, from) == (Named::RBP, Named::RSP) => Effect {
            fp_from_sp: Some(0),
            ..none
        },
        Mnemonic::Mov if (to, from) == (Named::RSP, Named::RBP) => Effect {
            sp_from_fp: Some(0),
            ..none
        },
        Mnemonic::Mov if from == Named::RBP && base == Named::RSP && has_no_index => Effect {
            stores_fp: Some(place()),
            ..none
        },
        Mnemonic::Mov if to == Named::RBP && base == Named::RSP && has_no_index => Effect {
            loads_fp: Some(place()),
            ..none
        },
        Mnemonic::Lea if has_no_index => match (to, base) {
            (Named::RSP, Named::RSP) => Effect {
                moves_after: place(),
                ..none
            },
            (Named::RSP, Named::RBP) => Effect {
                sp_from_fp: Some(place()),
                ..none
            },
            (Named::RBP, Named::RSP) => Effect {
                fp_from_sp: Some(place()),
                ..none
            },
            _ => loses(to),
        },
        // They write nothing but flags.
        Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt => none,
        _ if decoded.op0_kind() == OpKind::Register
            && [Named::RSP, Named::RBP].contains(&to.full_register()) =>
        {
            Effect {
                loads_sp: to == Named::RSP
                    && decoded.mnemonic() == Mnemonic::Mov
                    && base != Named::None,
                ..loses(to.full_register())
            }
        }
        // A call leaves the stack as it was.
        _ if decoded.flow_control() == FlowControl::Next => Effect {
            moves_after: decoded.stack_pointer_increment().into(),
            ..none
        },
        _ => none,
    }
}

/// The number of a whole general register.
fn register(named: Named) -> Option<u8> {
    named.is_gpr64().then(|| named.number() as u8)
}

fn loses(register: Named) -> Effect {
    Effect {
        loses_sp: register == Named::RSP,
        loses_fp: register == Named::RBP,
        ..Effect::default()
    }
}
