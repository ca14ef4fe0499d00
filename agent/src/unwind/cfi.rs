//! Call frame information: runs the programs of one section, row by row.
//!
//! The instructions are gimli's; the evaluation is ours, because only three of the columns matter,
//! and because a program's cost must be linear in its own length: the rows of a CIE are computed
//! once and not for each function. Source: DWARF 5, section 6.4; LSB 5, `.eh_frame`.

use std::ops::Range;

use gimli::{
    BaseAddresses, CallFrameInstruction, CallFrameInstructionIter, CommonInformationEntry,
    EndianSlice, Format, LittleEndian, Reader, Register, UnwindExpression, UnwindOffset,
    UnwindSection,
};
use hotspan_abi::unwind::{BASE_ALIGNED, BASE_SP, FP_AT_FP, RA_AT_CFA, Rule, WideRule};

use super::{
    Reason, Report, TableRule,
    arch::{self, Arch, Meaning},
    bare_code::flow::{Flow, instructions},
    steps::{Steps, WideRules},
};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Functions of one file: 48 MiB while a table is made. The largest known binaries have a third.
const MAX_FUNCTIONS: usize = 2 << 20;
/// Steps of one file: 128 MiB while a table is made, and an eighth of all tables as rows.
const MAX_STEPS: usize = 8 << 20;
/// Rows of one function.
const MAX_FUNCTION_ROWS: usize = 64 << 10;
/// Bytes of a CIE. It may be read again for each function; those of compilers have 32.
const MAX_CIE_BYTES: usize = 512;
/// Bytes of all CIEs of a file, each counted as often as it is read: functions that take turns with two
/// in one place make them be read for each.
const MAX_READ_CIE_BYTES: usize = 32 << 20;
/// Instructions of a function that are searched for where it saves a register: its prologue's.
const MAX_SEARCHED_INSTRUCTIONS: usize = 64;
/// States that a program can remember at once. Compilers remember one.
const MAX_REMEMBERED: usize = 32;
/// CIEs that are kept, by their offset.
const KNOWN_CIES: usize = 64;

/// How the CFA is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cfa {
    Register(Register, i64),
    Expression(UnwindExpression<usize>),
}

/// Where a register of the caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    /// In the register itself.
    Same,
    /// Nowhere.
    Undefined,
    /// In memory at an offset from the CFA.
    AtCfa(i64),
    /// In memory where an expression says.
    AtExpression(UnwindExpression<usize>),
    /// In another register.
    InRegister(Register),
    /// Computed.
    Elsewhere,
}

/// The columns of a row that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub cfa: Cfa,
    pub fp: Saved,
    pub ra: Saved,
}

impl State {
    const INITIAL: Self = Self {
        cfa: Cfa::Register(Register(u16::MAX), 0),
        fp: Saved::Same,
        ra: Saved::Same,
    };

    fn column(&mut self, arch: Arch, register: Register) -> Option<&mut Saved> {
        let facts = arch.facts();
        if register == facts.frame_pointer {
            Some(&mut self.fp)
        } else if register == facts.return_address {
            Some(&mut self.ra)
        } else {
            None
        }
    }
}

/// A function that a section describes.
struct Function {
    start: u64,
    end: u64,
    /// Offset of its FDE.
    offset: usize,
}

/// A CIE and the state that its program leads to.
struct Cie<'a> {
    offset: usize,
    entry: CommonInformationEntry<Slice<'a>>,
    initial: State,
}

/// A section of unwind information.
pub(super) struct Frames<'a, S> {
    pub arch: Arch,
    pub section: S,
    pub bytes: &'a [u8],
    pub bases: &'a BaseAddresses,
    /// Whether what follows a terminator is something else.
    pub ends_at_zero: bool,
    /// The code at an address, so much of it as there is.
    pub code: &'a dyn Fn(Range<u64>) -> &'a [u8],
}

/// What came out so far, of all sections.
#[derive(Default)]
pub(super) struct Output {
    pub wide: WideRules,
    pub report: Report,
    /// Code whose frame is aligned, and its rule.
    aligned: Vec<(Range<u64>, WideRule)>,
}

impl<'a, S> Frames<'a, S>
where
    S: UnwindSection<Slice<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    /// What the section says of the addresses in `text`.
    pub fn steps(&self, text: &[Range<u64>], output: &mut Output) -> Steps {
        let mut cies = Cies::default();
        let mut functions = self.functions(text, &mut cies, &mut output.report);
        functions.sort_by_key(|function| function.start);
        let mut steps = Steps::default();
        let mut remembered = Vec::new();
        for index in 0..functions.len() {
            let function = &functions[index];
            let next = functions.get(index + 1).map_or(u64::MAX, |next| next.start);
            // A function that starts within another one wins from there on, as it does in the
            // search of `.eh_frame_hdr`; of two at one address the later one in the section.
            if next < function.end {
                output.report.refuse(Reason::Overlap);
            }
            let range = function.start..function.end.min(next);
            if range.is_empty() {
                continue;
            }
            if steps.len() >= MAX_STEPS {
                output.report.refuse(Reason::TooMany);
                break;
            }
            let mut program = Program {
                frames: self,
                range,
                output,
                steps: &mut steps,
                remembered: &mut remembered,
                has_pushed: false,
            };
            program.run(function.offset, &mut cies);
        }
        let aligned = std::mem::take(&mut output.aligned);
        self.behind_calls(&aligned, &functions, &mut cies, output)
            .or(steps)
    }

    /// What holds in code whose frame is aligned while it calls another function. That function has
    /// saved the register that the frame is known by: so far below the stack pointer of the call as it
    /// says itself. The last byte of a call instruction is what a return address is looked up by, and
    /// nothing else.
    fn behind_calls(
        &self,
        aligned: &[(Range<u64>, WideRule)],
        functions: &[Function],
        cies: &mut Cies<'a>,
        output: &mut Output,
    ) -> Steps {
        let mut steps = Steps::default();
        for (range, rule) in aligned {
            let code = (self.code)(range.clone());
            for (addr, instruction) in instructions(self.arch, code, range.start) {
                let Flow::Call(target) = instruction.flow else {
                    continue;
                };
                let callee = functions.binary_search_by_key(&target, |function| function.start);
                let callee = callee.ok().map(|index| functions[index].offset);
                let Some(below) = callee.and_then(|callee| self.saved_below(callee, cies)) else {
                    continue;
                };
                let rule = WideRule {
                    cfa_base: BASE_SP,
                    cfa_offset: -below,
                    cfa_is_read: 1,
                    cfa_addend: rule.cfa_offset,
                    ..*rule
                };
                let behind = addr + instruction.bytes as u64;
                steps.push(behind - 1, output.wide.rule(rule));
                steps.push(behind, None);
            }
        }
        steps
    }

    /// How far below its CFA a function saves the register of aligned frames.
    fn saved_below(&self, offset: usize, cies: &mut Cies<'a>) -> Option<i32> {
        let partial = self
            .section
            .partial_fde_from_offset(self.bases, offset.into());
        let partial = partial.ok()?;
        let cie = cies.get(self, UnwindOffset::into(partial.cie_offset()))?;
        let function = partial.parse(|_, _, _| Ok(cie.entry.clone())).ok()?;
        let mut instructions = function.instructions(&self.section, self.bases);
        for _ in 0..MAX_SEARCHED_INSTRUCTIONS {
            let instruction = instructions.next().ok()??;
            if let CallFrameInstruction::Offset {
                register,
                factored_offset,
            } = instruction
                && register == self.arch.facts().aligned
            {
                let factor = cie.entry.data_alignment_factor();
                let offset = (factored_offset as i64).checked_mul(factor)?;
                return i32::try_from(offset.checked_neg()?).ok();
            }
        }
        None
    }

    /// All functions in `text`, in the section's order.
    fn functions(
        &self,
        text: &[Range<u64>],
        cies: &mut Cies<'a>,
        report: &mut Report,
    ) -> Vec<Function> {
        let mut functions = Vec::new();
        let mut offset = 0;
        while let Some(entry) = self.entry_at(offset) {
            match entry {
                Entry::Terminator if self.ends_at_zero => break,
                Entry::Terminator => offset += 4,
                Entry::Cie { next } => offset = next,
                Entry::Function { next } => {
                    let Some(range) = self.function_range(offset, cies) else {
                        report.refuse(Reason::BadEntry);
                        offset = next;
                        continue;
                    };
                    if functions.len() == MAX_FUNCTIONS {
                        report.refuse(Reason::TooMany);
                        break;
                    }
                    if is_inside(&range, text) {
                        functions.push(Function {
                            start: range.start,
                            end: range.end,
                            offset,
                        });
                    } else {
                        report.refuse(Reason::OutsideText);
                    }
                    offset = next;
                }
                Entry::Broken => {
                    report.refuse(Reason::BadEntry);
                    break;
                }
            }
        }
        functions
    }

    /// Finds out what lies at an offset; gimli's own iterator would stop at the first error.
    fn entry_at(&self, offset: usize) -> Option<Entry> {
        let rest = self.bytes.get(offset..).filter(|rest| !rest.is_empty())?;
        let mut input = EndianSlice::new(rest, LittleEndian);
        let Ok((len, format)) = input.read_initial_length() else {
            return Some(Entry::Broken);
        };
        if len == 0 {
            return Some(Entry::Terminator);
        }
        let Ok(mut body) = input.split(len) else {
            return Some(Entry::Broken);
        };
        let next = self.bytes.len() - input.len();
        let id = match S::cie_offset_encoding(format) {
            gimli::CieOffsetEncoding::U32 => body.read_u32().map(u64::from),
            gimli::CieOffsetEncoding::U64 => body.read_u64(),
        };
        match id {
            Ok(id) if S::is_cie(format, id) => Some(Entry::Cie { next }),
            _ => Some(Entry::Function { next }),
        }
    }

    fn function_range(&self, offset: usize, cies: &mut Cies<'a>) -> Option<Range<u64>> {
        let partial = self
            .section
            .partial_fde_from_offset(self.bases, offset.into())
            .ok()?;
        let cie = cies.get(self, UnwindOffset::into(partial.cie_offset()))?;
        let function = partial.parse(|_, _, _| Ok(cie.entry.clone())).ok()?;
        let start = function.initial_address();
        Some(start..start.checked_add(function.len())?)
    }

    /// The bytes of an expression of this section.
    fn expression(&self, place: UnwindExpression<usize>) -> &'a [u8] {
        let end = place.offset.saturating_add(place.length);
        self.bytes.get(place.offset..end).unwrap_or_default()
    }
}

/// What lies at an offset of a section.
enum Entry {
    Terminator,
    Cie { next: usize },
    Function { next: usize },
    Broken,
}

fn is_inside(range: &Range<u64>, text: &[Range<u64>]) -> bool {
    let index = text.partition_point(|text| text.start <= range.start);
    let text = index.checked_sub(1).map(|index| &text[index]);
    text.is_some_and(|text| range.start < text.end && range.end <= text.end)
}

/// CIEs that were read, by a few bits of their offset.
struct Cies<'a> {
    known: Vec<Option<Cie<'a>>>,
    /// Bytes of CIEs that may still be read.
    left: usize,
}

impl Default for Cies<'_> {
    fn default() -> Self {
        Self {
            known: (0..KNOWN_CIES).map(|_| None).collect(),
            left: MAX_READ_CIE_BYTES,
        }
    }
}

impl<'a> Cies<'a> {
    fn get<S>(&mut self, frames: &Frames<'a, S>, offset: usize) -> Option<&Cie<'a>>
    where
        S: UnwindSection<Slice<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let slot = &mut self.known[offset / 4 % KNOWN_CIES];
        if slot.as_ref().is_none_or(|cie| cie.offset != offset) {
            *slot = Some(Self::read(frames, offset, &mut self.left)?);
        }
        slot.as_ref()
    }

    fn read<S>(frames: &Frames<'a, S>, offset: usize, left: &mut usize) -> Option<Cie<'a>>
    where
        S: UnwindSection<Slice<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut input = EndianSlice::new(frames.bytes.get(offset..)?, LittleEndian);
        let (len, _): (usize, Format) = input.read_initial_length().ok()?;
        if len > MAX_CIE_BYTES {
            return None;
        }
        *left = left.checked_sub(len)?;
        let entry = frames
            .section
            .cie_from_offset(frames.bases, offset.into())
            .ok()?;
        let mut initial = State::INITIAL;
        let mut instructions = entry.instructions(&frames.section, frames.bases);
        while let Some(instruction) = instructions.next().ok()? {
            match apply(frames.arch, &mut initial, &instruction, &entry, None) {
                Change::Column => {}
                Change::Other | Change::Invalid => return None,
            }
        }
        Some(Cie {
            offset,
            entry,
            initial,
        })
    }
}

/// One function's program.
struct Program<'p, 'a, S> {
    frames: &'p Frames<'a, S>,
    range: Range<u64>,
    output: &'p mut Output,
    steps: &'p mut Steps,
    remembered: &'p mut Vec<State>,
    /// Whether a row had the frame pointer saved above the stack pointer.
    has_pushed: bool,
}

impl<'a, S> Program<'_, 'a, S>
where
    S: UnwindSection<Slice<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    /// Appends the function's rows. Behind what cannot be understood there is no rule.
    fn run(&mut self, offset: usize, cies: &mut Cies<'a>) {
        let end = self.range.end;
        if let Err((addr, reason)) = self.try_run(offset, cies) {
            self.output.report.refuse(reason);
            self.steps.push(addr, Some(TableRule::NONE));
        }
        self.steps.push(end, None);
    }

    fn try_run(&mut self, offset: usize, cies: &mut Cies<'a>) -> Result<(), (u64, Reason)> {
        let Frames { section, bases, .. } = self.frames;
        let mut addr = self.range.start;
        let bad_entry = (addr, Reason::BadEntry);
        let partial = section
            .partial_fde_from_offset(bases, offset.into())
            .map_err(|_| bad_entry)?;
        let cie = cies
            .get(self.frames, UnwindOffset::into(partial.cie_offset()))
            .ok_or(bad_entry)?;
        let function = partial
            .parse(|_, _, _| Ok(cie.entry.clone()))
            .map_err(|_| bad_entry)?;
        let is_signal = function.is_signal_trampoline();
        let mut instructions: CallFrameInstructionIter<'_, Slice<'a>> =
            function.instructions(section, bases);
        let mut state = cie.initial;
        let mut rows = 0;
        self.remembered.clear();
        loop {
            let bad_program = |_| (addr, Reason::BadProgram);
            let Some(instruction) = instructions.next().map_err(bad_program)? else {
                break;
            };
            match apply(
                self.frames.arch,
                &mut state,
                &instruction,
                &cie.entry,
                Some(&cie.initial),
            ) {
                Change::Column => continue,
                Change::Invalid => return Err((addr, Reason::BadProgram)),
                Change::Other => {}
            }
            let next = match instruction {
                CallFrameInstruction::RememberState if self.remembered.len() < MAX_REMEMBERED => {
                    self.remembered.push(state);
                    continue;
                }
                CallFrameInstruction::RestoreState => {
                    let remembered = self.remembered.pop();
                    state = remembered.ok_or((addr, Reason::BadProgram))?;
                    continue;
                }
                CallFrameInstruction::SetLoc { address } => Some(address),
                CallFrameInstruction::AdvanceLoc { delta } => {
                    let bytes = u64::from(delta).checked_mul(cie.entry.code_alignment_factor());
                    bytes.and_then(|bytes| addr.checked_add(bytes))
                }
                _ => None,
            };
            let next = next
                .filter(|&next| next >= addr)
                .ok_or((addr, Reason::BadProgram))?;
            if next > addr {
                self.row(addr..next, &state, is_signal);
                rows += 1;
            }
            addr = next;
            if addr >= self.range.end {
                return Ok(());
            }
            if rows == MAX_FUNCTION_ROWS {
                return Err((addr, Reason::TooMany));
            }
        }
        self.row(addr..self.range.end, &state, is_signal);
        Ok(())
    }

    /// Appends what a row says for a range of addresses.
    fn row(&mut self, range: Range<u64>, state: &State, is_signal: bool) {
        let meaning = arch::meaning(self.frames.arch, state, is_signal, |place| {
            self.frames.expression(place)
        });
        let rule = match meaning {
            Ok(Meaning::Short(rule)) => Ok(TableRule::Short(self.without_popped(rule))),
            Ok(Meaning::Wide(wide)) if self.has_popped_all(&wide) => {
                Ok(TableRule::Short(self.frames.arch.facts().just_called))
            }
            Ok(Meaning::Wide(wide)) => {
                if wide.cfa_base == BASE_ALIGNED && wide.cfa_is_read == 0 {
                    self.output.aligned.push((range.clone(), wide));
                }
                self.output.wide.rule(wide).ok_or(Reason::TooMany)
            }
            Ok(Meaning::Plt(arch::PLT_PUSH)) => Ok(TableRule::Short(Rule::PLT)),
            Ok(Meaning::Plt(push)) => return self.plt_rows(range, push),
            Err(reason) => Err(reason),
        };
        let rule = rule.unwrap_or_else(|reason| {
            self.output.report.refuse(reason);
            TableRule::NONE
        });
        self.steps.push(range.start, Some(rule));
    }

    /// Compilers do not say that an epilogue has popped the frame pointer. Then it is back in its
    /// register, and where it was saved is below the stack pointer; fewer rows differ by saying so,
    /// and nothing is read there. A function that never had it above saved it in the red zone.
    fn without_popped(&mut self, rule: Rule) -> Rule {
        if !self.frames.arch.facts().pops_silently {
            return rule;
        }
        let (cfa, fp) = (rule.cfa_bytes(), rule.fp_bytes());
        match rule.kind() {
            Rule::FROM_SP if fp > cfa && self.has_pushed => {
                Rule::from_register(Rule::FROM_SP, cfa as i64, 0).unwrap_or(rule)
            }
            Rule::FROM_SP | Rule::FROM_FP => {
                self.has_pushed |= fp > 0 && (fp <= cfa || rule.kind() == Rule::FROM_FP);
                rule
            }
            _ => rule,
        }
    }

    /// The same of a frame pointer that was saved where it points to: nothing is left but the return address.
    fn has_popped_all(&self, rule: &WideRule) -> bool {
        let facts = self.frames.arch.facts();
        let left = WideRule {
            cfa_base: BASE_SP,
            cfa_offset: facts.call_pushes as i32,
            fp_rule: FP_AT_FP,
            ra_rule: RA_AT_CFA,
            ra_offset: -facts.call_pushes as i32,
            ..WideRule::default()
        };
        facts.pops_silently && *rule == left
    }

    /// Writes a procedure linkage table out that has no rule of its own.
    fn plt_rows(&mut self, range: Range<u64>, push: u64) {
        let end = range.end.min(self.range.end);
        let mut addr = range.start;
        while addr < end && self.steps.len() < MAX_STEPS {
            let into = addr % arch::PLT_ENTRY_BYTES;
            let is_pushed = into >= push;
            self.steps
                .push(addr, Some(TableRule::Short(arch::plt_rule(is_pushed))));
            let boundary = if is_pushed {
                arch::PLT_ENTRY_BYTES
            } else {
                push
            };
            addr += boundary - into;
        }
    }
}

/// What an instruction did.
enum Change {
    /// It changed a column, or nothing that matters.
    Column,
    /// It is none that changes a column.
    Other,
    /// It has no meaning here.
    Invalid,
}

/// Applies an instruction that changes columns; `initial` is what `restore` restores.
fn apply(
    arch: Arch,
    state: &mut State,
    instruction: &CallFrameInstruction<usize>,
    cie: &CommonInformationEntry<Slice<'_>>,
    initial: Option<&State>,
) -> Change {
    use CallFrameInstruction as I;
    let factored = |offset: i64| offset.wrapping_mul(cie.data_alignment_factor());
    match *instruction {
        I::DefCfa { register, offset } => state.cfa = Cfa::Register(register, offset as i64),
        I::DefCfaSf {
            register,
            factored_offset,
        } => state.cfa = Cfa::Register(register, factored(factored_offset)),
        I::DefCfaRegister { register } => match &mut state.cfa {
            Cfa::Register(base, _) => *base = register,
            Cfa::Expression(_) => return Change::Invalid,
        },
        I::DefCfaOffset { offset } => match &mut state.cfa {
            Cfa::Register(_, sum) => *sum = offset as i64,
            Cfa::Expression(_) => return Change::Invalid,
        },
        I::DefCfaOffsetSf { factored_offset } => match &mut state.cfa {
            Cfa::Register(_, sum) => *sum = factored(factored_offset),
            Cfa::Expression(_) => return Change::Invalid,
        },
        I::DefCfaExpression { expression } => state.cfa = Cfa::Expression(expression),
        I::Restore { register } => {
            let Some(mut initial) = initial.copied() else {
                return Change::Invalid;
            };
            if let (Some(column), Some(was)) =
                (state.column(arch, register), initial.column(arch, register))
            {
                *column = *was;
            }
        }
        I::Undefined { register } => set(arch, state, register, Saved::Undefined),
        I::SameValue { register } => set(arch, state, register, Saved::Same),
        I::Offset {
            register,
            factored_offset,
        } => set(
            arch,
            state,
            register,
            Saved::AtCfa(factored(factored_offset as i64)),
        ),
        I::OffsetExtendedSf {
            register,
            factored_offset,
        } => set(
            arch,
            state,
            register,
            Saved::AtCfa(factored(factored_offset)),
        ),
        I::Expression {
            register,
            expression,
        } => set(arch, state, register, Saved::AtExpression(expression)),
        I::ValOffset { register, .. }
        | I::ValOffsetSf { register, .. }
        | I::ValExpression { register, .. } => set(arch, state, register, Saved::Elsewhere),
        I::Register {
            dest_register,
            src_register,
        } => set(arch, state, dest_register, Saved::InRegister(src_register)),
        // Signatures of return addresses are taken off, whether there is one or not.
        I::ArgsSize { .. } | I::Nop | I::NegateRaState => {}
        I::SetLoc { .. } | I::AdvanceLoc { .. } | I::RememberState | I::RestoreState => {
            return Change::Other;
        }
    }
    Change::Column
}

fn set(arch: Arch, state: &mut State, register: Register, saved: Saved) {
    if let Some(column) = state.column(arch, register) {
        *column = saved;
    }
}
