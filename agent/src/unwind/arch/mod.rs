//! What unwinding has to know of a processor: registers, how rules are expressed, and code without
//! unwind information. One file each; what they share is here.

mod aarch64;
mod expression;
mod x86_64;

use std::ops::Range;

use gimli::{Register, UnwindExpression, Vendor};
use hotspan_abi::unwind::{
    BASE_ALIGNED, BASE_FIRST_SCRATCH, BASE_FP, BASE_SECOND_SCRATCH, BASE_SP, FP_AT_CFA, FP_AT_FP,
    FP_SAME, RA_AT_CFA, RA_IN_LINK, Rule, WideRule,
};

use super::{
    Reason,
    bare_code::flow::Instruction,
    cfi::{Cfa, Saved, State},
};
use expression::Address;
pub(super) use x86_64::{PLT_ENTRY_BYTES, PLT_PUSH, plt_rule};

/// A processor whose files are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// arm64.
    Aarch64,
}

impl Arch {
    /// All of them.
    const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The one that this program runs on, and all that it records.
    pub const NATIVE: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    /// The one with this number in ELF headers.
    #[must_use]
    pub fn of_machine(machine: u16) -> Option<Self> {
        let is_it = |arch: &Self| arch.facts().elf_machine == machine;
        Self::ALL.into_iter().find(is_it)
    }

    /// What tools call its frame pointer.
    #[must_use]
    pub fn frame_pointer_name(self) -> &'static str {
        self.facts().names[1]
    }

    /// What differs between them.
    pub(super) const fn facts(self) -> &'static Facts {
        match self {
            Self::X86_64 => &x86_64::FACTS,
            Self::Aarch64 => &aarch64::FACTS,
        }
    }
}

/// The parts of a procedure linkage table, and what holds in each.
pub(super) type LinkageTable = Vec<(Range<u64>, Rule)>;

/// What differs between processors.
pub(super) struct Facts {
    /// Number in ELF headers.
    pub elf_machine: u16,
    /// Whose instructions there are besides the usual ones.
    pub vendor: Vendor,
    /// Register that the stack ends at.
    pub stack_pointer: Register,
    /// Register that links frames.
    pub frame_pointer: Register,
    /// Column of the return address.
    pub return_address: Register,
    /// Register that a return address may be in, see [`Rule::link`].
    pub link: Register,
    /// Register of [`BASE_ALIGNED`].
    pub aligned: Register,
    /// Registers of [`BASE_FIRST_SCRATCH`] and [`BASE_SECOND_SCRATCH`].
    pub scratch: [Register; 2],
    /// What tools call the registers for [`BASE_SP`], [`BASE_FP`], [`BASE_ALIGNED`] and the last two.
    pub names: [&'static str; 5],
    /// And the one for [`RA_IN_LINK`].
    pub link_name: &'static str,
    /// Whether compilers leave out that an epilogue has popped the frame pointer.
    pub pops_silently: bool,
    /// Where a rule of 24 bits has the return address, from the CFA: by the CFA's distance from its
    /// register and the frame pointer's from it, 0 when that was not saved.
    pub return_address_offset: fn(cfa: i64, fp: i64) -> i64,
    /// Whether this row is a signal trampoline's, which may be marked as one.
    pub is_signal: fn(row: &SignalRow) -> bool,
    /// Recognizes what linkers write for a procedure linkage table: where in an entry it pushes.
    pub plt_push: fn(expression: &[u8]) -> Option<u64>,
    /// Code without unwind information that is known by its bytes.
    pub landmarks: &'static [Landmark],
    /// The rule of a function that has just been called.
    pub just_called: Rule,
    /// Bytes of the return address that a call pushes.
    pub call_pushes: i64,
    /// Bytes below the stack pointer that signals leave alone.
    pub red_zone_bytes: i64,
    /// Reads the instruction at the start of code that lies at an address.
    pub decode: fn(code: &[u8], addr: u64) -> Instruction,
    /// Whether compilers take addresses of code for computed jumps alone, or else of functions.
    pub jumps_from_addresses: bool,
    /// Finds a procedure linkage table in code at an address: some linkers say nothing of it.
    pub linkage_table: fn(code: &[u8], start: u64) -> LinkageTable,
    /// Whether code keeps frame pointers.
    pub keeps_frame_pointer: fn(code: &[u8]) -> bool,
    /// Puts back what a JVM has written over the entry of a method that is called no more, whose frame is so
    /// long once it is made.
    pub restore_entry: fn(entry: &mut [u8], frame_bytes: i64),
    /// The start of a process, where the entry point has no unwind information, is no longer.
    pub start_bytes: u64,
}

/// What tells a signal trampoline.
pub(super) struct SignalRow {
    pub is_marked: bool,
    pub cfa: Address,
    pub ra: Saved,
}

/// Code without unwind information that is known by its bytes: how to unwind in it.
pub(super) struct Landmark {
    /// Its bytes.
    pub code: &'static [u8],
    /// What holds from each of these offsets from its start on.
    pub rules: &'static [(i64, Rule)],
}

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
    arch: Arch,
    state: &State,
    is_marked: bool,
    expression: impl Fn(UnwindExpression<usize>) -> &'a [u8],
) -> Result<Meaning, Reason> {
    let facts = arch.facts();
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
            if let Some(push) = (facts.plt_push)(bytes) {
                return Ok(Meaning::Plt(push));
            }
            Address::parse(bytes).ok_or(Reason::CfaExpression)?
        }
    };
    let ra = state.ra;
    if (facts.is_signal)(&SignalRow { is_marked, cfa, ra }) {
        return Ok(Meaning::Short(Rule::SIGNAL));
    }
    let (ra_rule, ra_offset) = return_address(facts, ra)?;
    let cfa_base = match cfa.register {
        register if register == facts.stack_pointer => BASE_SP,
        register if register == facts.frame_pointer => BASE_FP,
        register if register == facts.aligned => BASE_ALIGNED,
        register if register == facts.scratch[0] => BASE_FIRST_SCRATCH,
        register if register == facts.scratch[1] => BASE_SECOND_SCRATCH,
        _ => return Err(Reason::CfaRegister),
    };
    let (fp_rule, fp_offset) = frame_pointer(facts, state.fp, expression)?;
    let narrow = |offset: i64, reason| i32::try_from(offset).map_err(|_| reason);
    let wide = WideRule {
        cfa_base,
        cfa_offset: narrow(cfa.offset, Reason::CfaExpression)?,
        cfa_is_read: cfa.read.is_some().into(),
        cfa_addend: narrow(cfa.read.unwrap_or(0), Reason::CfaExpression)?,
        fp_rule,
        fp_offset: narrow(fp_offset, Reason::FramePointer)?,
        ra_rule,
        ra_offset: narrow(ra_offset, Reason::ReturnAddress)?,
    };
    Ok(short(arch, &wide).map_or(Meaning::Wide(wide), Meaning::Short))
}

/// Where the return address is: one of the rules of [`WideRule`], and its offset.
fn return_address(facts: &Facts, saved: Saved) -> Result<(u32, i64), Reason> {
    let register = match saved {
        Saved::AtCfa(offset) => return Ok((RA_AT_CFA, offset)),
        Saved::Same => facts.return_address,
        Saved::InRegister(register) => register,
        _ => return Err(Reason::ReturnAddress),
    };
    if register == facts.link {
        return Ok((RA_IN_LINK, 0));
    }
    Err(Reason::ReturnAddress)
}

/// Where the caller's frame pointer is: one of the rules of [`WideRule`], and its offset.
fn frame_pointer<'a>(
    facts: &Facts,
    saved: Saved,
    expression: impl Fn(UnwindExpression<usize>) -> &'a [u8],
) -> Result<(u32, i64), Reason> {
    match saved {
        // Where it is undefined no caller needs it.
        Saved::Same | Saved::Undefined => Ok((FP_SAME, 0)),
        Saved::AtCfa(offset) => Ok((FP_AT_CFA, offset)),
        Saved::AtExpression(place) => match Address::parse(expression(place)) {
            Some(Address {
                register,
                offset,
                read: None,
            }) if register == facts.frame_pointer => Ok((FP_AT_FP, offset)),
            _ => Err(Reason::FramePointer),
        },
        Saved::InRegister(_) | Saved::Elsewhere => Err(Reason::FramePointer),
    }
}

/// The same as a rule of 24 bits, when it fits.
pub(super) fn short(arch: Arch, wide: &WideRule) -> Option<Rule> {
    if wide.cfa_is_read != 0 {
        return None;
    }
    let cfa = i64::from(wide.cfa_offset);
    // In the short rule 0 stands for a frame pointer that was not saved.
    let fp = match (wide.fp_rule, -i64::from(wide.fp_offset)) {
        (FP_SAME, _) => 0,
        (FP_AT_CFA, below) if below > 0 => below,
        _ => return None,
    };
    let kind = match wide.cfa_base {
        BASE_SP if wide.ra_rule == RA_IN_LINK && fp == 0 => return Rule::link(cfa),
        BASE_SP => Rule::FROM_SP,
        BASE_FP => Rule::FROM_FP,
        _ => return None,
    };
    let is_usual = wide.ra_rule == RA_AT_CFA
        && i64::from(wide.ra_offset) == (arch.facts().return_address_offset)(cfa, fp);
    if is_usual {
        Rule::from_register(kind, cfa, fp)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_its_number() {
        for arch in Arch::ALL {
            assert_eq!(Arch::of_machine(arch.facts().elf_machine), Some(arch));
        }
        assert_eq!(Arch::of_machine(object::elf::EM_386), None);
    }
}
