//! What unwinding has to know of x86-64: registers, how rules are expressed, and code without
//! unwind information.
//!
//! Sources: System V ABI, AMD64 supplement, figure 3.36 (register numbers); DWARF 5, section 2.5
//! (expressions); binutils `bfd/elfxx-x86.c` (what linkers say of a procedure linkage table).

use gimli::{Encoding, EndianSlice, Format, LittleEndian, Operation, Register, X86_64};
use hotspan_abi::unwind::{BASE_FP, BASE_SP, FP_AT_CFA, FP_AT_FP, FP_SAME, Rule, WideRule};

use super::{
    Reason,
    cfi::{Cfa, Saved, State},
};

/// The machine whose files are understood.
pub(super) const ELF_MACHINE: u16 = object::elf::EM_X86_64;
/// The register that links frames.
pub(super) const FRAME_POINTER: Register = X86_64::RBP;
/// The column of the return address.
pub(super) const RETURN_ADDRESS: Register = X86_64::RA;

/// A call pushes the return address last: it lies here from the CFA.
const RETURN_ADDRESS_OFFSET: i64 = -8;
/// Where a signal trampoline finds the interrupted stack pointer: `ucontext.uc_mcontext.gregs[15]`
/// of `struct rt_sigframe`, whose first word was the trampoline's address and is popped.
const SIGNAL_SP_OFFSET: i64 = 160;

/// What one row of unwind information becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A rule of 24 bits.
    Short(Rule),
    /// A longer rule.
    Wide(WideRule),
    /// A procedure linkage table of 16-byte entries that push at this offset, so that the CFA is 8
    /// or 16 above the stack pointer.
    Plt(u64),
}

/// Translates one row; `expression` gives the bytes of an expression.
pub(super) fn meaning<'a>(
    state: &State,
    is_signal: bool,
    expression: impl Fn(gimli::UnwindExpression<usize>) -> &'a [u8],
) -> Result<Meaning, Reason> {
    if state.ra == Saved::Undefined {
        return Ok(Meaning::Short(Rule::ROOT));
    }
    let cfa = match state.cfa {
        Cfa::Register(register, offset) => Address {
            register,
            offset,
            read: None,
        },
        Cfa::Expression(place) => {
            let bytes = expression(place);
            if let Some(push) = plt_push(bytes) {
                return Ok(Meaning::Plt(push));
            }
            Address::parse(bytes).ok_or(Reason::CfaExpression)?
        }
    };
    // Either sign will do: some trampolines lack the mark, and marked code may have plain rules.
    let is_signal = is_signal || matches!(state.ra, Saved::AtExpression(_));
    if is_signal && cfa == SIGNAL_CFA {
        return Ok(Meaning::Short(Rule::SIGNAL));
    }
    if state.ra != Saved::AtCfa(RETURN_ADDRESS_OFFSET) {
        return Err(Reason::ReturnAddress);
    }
    let kind = match cfa.register {
        X86_64::RSP => Rule::FROM_SP,
        X86_64::RBP => Rule::FROM_FP,
        _ => return Err(Reason::CfaRegister),
    };
    let (fp_rule, fp_offset) = frame_pointer(state.fp, expression)?;
    // In the short rule 0 stands for a frame pointer that was not saved.
    let fp_below = match (fp_rule, fp_offset) {
        (FP_SAME, _) => Some(0),
        (FP_AT_CFA, offset) if offset < 0 => Some(-offset),
        _ => None,
    };
    if let (None, Some(below)) = (cfa.read, fp_below)
        && let Some(rule) = Rule::from_register(kind, cfa.offset, below)
    {
        return Ok(Meaning::Short(rule));
    }
    let narrow = |offset: i64, reason| i32::try_from(offset).map_err(|_| reason);
    Ok(Meaning::Wide(WideRule {
        cfa_base: if kind == Rule::FROM_SP {
            BASE_SP
        } else {
            BASE_FP
        },
        cfa_offset: narrow(cfa.offset, Reason::CfaExpression)?,
        cfa_is_read: cfa.read.is_some().into(),
        cfa_addend: narrow(cfa.read.unwrap_or(0), Reason::CfaExpression)?,
        fp_rule,
        fp_offset: narrow(fp_offset, Reason::FramePointer)?,
    }))
}

/// Where the caller's frame pointer is: one of the rules of [`WideRule`], and its offset.
fn frame_pointer<'a>(
    saved: Saved,
    expression: impl Fn(gimli::UnwindExpression<usize>) -> &'a [u8],
) -> Result<(u32, i64), Reason> {
    match saved {
        // Where it is undefined no caller needs it.
        Saved::Same | Saved::Undefined => Ok((FP_SAME, 0)),
        Saved::AtCfa(offset) => Ok((FP_AT_CFA, offset)),
        Saved::AtExpression(place) => match Address::parse(expression(place)) {
            Some(Address {
                register: X86_64::RBP,
                offset,
                read: None,
            }) => Ok((FP_AT_FP, offset)),
            _ => Err(Reason::FramePointer),
        },
        Saved::Elsewhere => Err(Reason::FramePointer),
    }
}

/// `register + offset`, or what lies in memory there plus an addend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address {
    register: Register,
    offset: i64,
    read: Option<i64>,
}

const SIGNAL_CFA: Address = Address {
    register: X86_64::RSP,
    offset: SIGNAL_SP_OFFSET,
    read: Some(0),
};

impl Address {
    /// Reads an expression that has this form.
    fn parse(expression: &[u8]) -> Option<Self> {
        const ENCODING: Encoding = Encoding {
            address_size: 8,
            format: Format::Dwarf32,
            version: 4,
        };
        let mut input = EndianSlice::new(expression, LittleEndian);
        let mut constant = None;
        let mut address = match Operation::parse(&mut input, ENCODING).ok()? {
            Operation::RegisterOffset {
                register, offset, ..
            } => Self {
                register,
                offset,
                read: None,
            },
            _ => return None,
        };
        while !input.is_empty() {
            match (
                Operation::parse(&mut input, ENCODING).ok()?,
                constant.take(),
            ) {
                (
                    Operation::Deref {
                        size: 8,
                        space: false,
                        ..
                    },
                    None,
                ) if address.read.is_none() => {
                    address.read = Some(0);
                }
                (Operation::PlusConstant { value }, None) => address.add(value as i64)?,
                (Operation::UnsignedConstant { value }, None) => constant = Some(value as i64),
                (Operation::SignedConstant { value }, None) => constant = Some(value),
                (Operation::Plus, Some(value)) => address.add(value)?,
                (Operation::Minus, Some(value)) => address.add(value.checked_neg()?)?,
                _ => return None,
            }
        }
        constant.is_none().then_some(address)
    }

    fn add(&mut self, value: i64) -> Option<()> {
        let sum = self.read.as_mut().unwrap_or(&mut self.offset);
        *sum = sum.checked_add(value)?;
        Some(())
    }
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
pub(super) const PLT_ENTRY_BYTES: u64 = 16;
/// Where entries push for which there is [`Rule::PLT`].
pub(super) const PLT_PUSH: u64 = 11;

/// The rule within an entry, before or behind its push.
pub(super) const fn plt_rule(is_pushed: bool) -> Rule {
    frameless_above(if is_pushed { 8 } else { 0 })
}

/// The rule of code that pushed so many bytes, and no frame pointer.
const fn frameless_above(bytes: i64) -> Rule {
    match Rule::from_register(Rule::FROM_SP, 8 + bytes, 0) {
        Some(rule) => rule,
        None => Rule::NONE,
    }
}

/// What holds in the first entry, which pushes a second word and jumps to the dynamic linker.
pub(super) const PLT_HEAD: &[(u64, Rule)] = &[(0, frameless_above(8)), (6, frameless_above(16))];

/// Whether these 16 bytes are an entry: `jmp *(%rip)`, `push`, `jmp`.
pub(super) fn is_plt_entry(code: &[u8]) -> bool {
    matches!(
        code,
        [0xff, 0x25, _, _, _, _, 0x68, _, _, _, _, 0xe9, _, _, _, _]
    )
}

/// The start of a process, where the entry point has no unwind information, is no longer than this:
/// musl's needs 22 bytes, that of glibc's dynamic linker 64.
pub(super) const START_BYTES: u64 = 64;

/// Code without unwind information that is known by its bytes: how to unwind in it.
pub(super) struct Landmark {
    /// Its bytes.
    pub code: &'static [u8],
    /// What holds from each of these offsets from its start on.
    pub rules: &'static [(i64, Rule)],
}

/// A function that pushed nothing.
const FRAMELESS: Rule = frameless_above(0);

/// musl writes these in assembly, and says nothing about frames there.
pub(super) const LANDMARKS: &[Landmark] = &[
    // `__clone` (src/thread/x86_64/clone.s). The new thread has an empty stack from `xor %ebp,%ebp`
    // on; the last instruction, `ret`, is the caller's again.
    Landmark {
        code: b"\x31\xc0\xb0\x38\x49\x89\xfb\x48\x89\xd7\x4c\x89\xc2\x4d\x89\xc8\
                \x4c\x8b\x54\x24\x08\x4d\x89\xd9\x48\x83\xe6\xf0\x48\x83\xee\x08\
                \x48\x89\x0e\x0f\x05\x85\xc0\x75\x0f\x31\xed\x5f\x41\xff\xd1\x89\
                \xc7\x31\xc0\xb0\x3c\x0f\x05\xf4\xc3",
        rules: &[(0, FRAMELESS), (41, Rule::ROOT), (56, FRAMELESS)],
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
pub(super) fn keeps_frame_pointer(code: &[u8]) -> bool {
    let prologues = code
        .windows(4)
        .filter(|&bytes| bytes == b"\x55\x48\x89\xe5" || bytes == b"\x55\x48\x8b\xec")
        .count();
    prologues > 0 && prologues * 2048 >= code.len()
}
