//! Code without unwind information: where its frames are, from what its instructions do.
//!
//! One sweep from the lowest address to the highest. A jump forward tells how the frame is where it
//! leads to. Behind a way out of a function, a part of it goes on that something jumps to, or that is
//! in the table of a computed jump; else the next function begins. Where others begin is known from
//! calls, addresses and symbols.
//!
//! What this does not do: loops that are entered backwards alone. They are taken for what lies before.

use std::ops::Range;

use hotspan_abi::unwind::{BASE_FP, BASE_SP, FP_AT_CFA, FP_SAME, RA_AT_CFA, RA_IN_LINK, WideRule};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::unwind::{
    TableRule,
    arch::{self, Arch},
    steps::WideRules,
};

/// What an instruction does that unwinding has to know. The parts happen in the order of the fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::unwind) struct Effect {
    /// The stack pointer becomes the frame pointer and this.
    pub sp_from_fp: Option<i64>,
    /// Added to the stack pointer, before anything is stored.
    pub moves_before: i64,
    /// The frame pointer is stored so far above the stack pointer.
    pub stores_fp: Option<i64>,
    /// The return address is stored so far above the stack pointer.
    pub stores_ra: Option<i64>,
    /// The frame pointer is loaded from so far above the stack pointer.
    pub loads_fp: Option<i64>,
    /// The return address is loaded from so far above the stack pointer.
    pub loads_ra: Option<i64>,
    /// The number of the register that is stored on top of the stack.
    pub pushes: Option<u8>,
    /// The number of the register that is loaded from the top of the stack.
    pub pops: Option<u8>,
    /// The frame pointer becomes the stack pointer and this.
    pub fp_from_sp: Option<i64>,
    /// Added to the stack pointer at last.
    pub moves_after: i64,
    /// The stack pointer is lowered to a multiple of 16, as CFAs are.
    pub aligns_sp: bool,
    /// The stack pointer gets a value that is not known.
    pub loses_sp: bool,
    /// It is one from memory.
    pub loads_sp: bool,
    /// The frame pointer gets a value that is not known.
    pub loses_fp: bool,
}

/// Where an instruction leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::unwind) enum Flow {
    /// To the next one.
    Next,
    /// To the next one or to an address.
    Branch(u64),
    /// To an address.
    Jump(u64),
    /// To an address that is computed.
    ComputedJump,
    /// To the next one, after a function that begins there.
    Call(u64),
    /// To the next one, after a function whose address is computed.
    ComputedCall,
    /// To the caller.
    Return,
    /// Nowhere.
    End,
}

impl Instruction {
    /// Whether functions begin so, and no other code that is jumped to: it lowers the stack, or says
    /// that it may be called.
    fn is_prologue(&self) -> bool {
        self.is_entry || self.effect.moves_before < 0 || self.effect.moves_after < 0
    }

    /// Whether it undoes a frame by its frame pointer, so that the return address is on top.
    fn leaves(&self) -> bool {
        self.effect.sp_from_fp.is_some() && self.effect.loads_fp == Some(0)
    }

    /// Whether it makes a frame record of two words, with what the call has pushed.
    fn pushes_fp(&self, arch: Arch) -> bool {
        let pushed = arch.facts().call_pushes;
        self.effect.moves_before == pushed - 16 && self.effect.stores_fp == Some(0)
    }
}

impl Flow {
    /// Whether it always leads away.
    fn is_way_out(self) -> bool {
        matches!(self, Self::Jump(_) | Self::ComputedJump | Self::Return)
    }
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::unwind) struct Instruction {
    /// How long it is.
    pub bytes: usize,
    /// What it does.
    pub effect: Effect,
    /// Where it leads to.
    pub flow: Flow,
    /// An address of which it takes hold: perhaps of a function.
    pub refers_to: Option<u64>,
    /// It marks what may be called through a pointer, or signs the return address.
    pub is_entry: bool,
    /// It does nothing: it may fill the space between functions.
    pub is_padding: bool,
}

/// The frame at an instruction. Distances are below the CFA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    /// Of the stack pointer, when it is known.
    sp: Option<i64>,
    /// Of the frame pointer, when it points into this frame.
    fp: Option<i64>,
    /// Of the caller's frame pointer; 0 when it is in its register.
    saved_fp: i64,
    /// Of the return address; 0 when it is in the link register.
    ra: i64,
    /// The register that the return address was moved to from there.
    popped: Option<u8>,
}

impl Frame {
    /// The frame pointer has just been set, to a record of the caller's and the return address.
    const WITH_RECORD: Self = Self {
        sp: Some(16),
        fp: Some(16),
        saved_fp: 16,
        ra: 8,
        popped: None,
    };

    /// It is so long, and has the caller's frame pointer below the return address.
    fn of_bytes(bytes: i64) -> Self {
        Self {
            sp: Some(bytes),
            fp: None,
            ..Self::WITH_RECORD
        }
    }

    /// Where a function begins.
    fn at_entry(arch: Arch) -> Self {
        let pushed = arch.facts().call_pushes;
        Self {
            sp: Some(pushed),
            fp: None,
            saved_fp: 0,
            ra: pushed,
            popped: None,
        }
    }

    fn apply(&mut self, effect: &Effect) {
        if let Some(offset) = effect.sp_from_fp {
            self.sp = self.fp.map(|fp| fp - offset);
        }
        self.move_sp(effect.moves_before);
        let below = |sp: Option<i64>, at: Option<i64>| Some(sp? - at?).filter(|below| *below > 0);
        if let Some(place) = below(self.sp, effect.stores_fp)
            && self.saved_fp == 0
        {
            self.saved_fp = place;
        }
        if let Some(place) = below(self.sp, effect.stores_ra)
            && self.ra == 0
        {
            self.ra = place;
        }
        if effect.pushes.is_some() && effect.pushes == self.popped {
            (self.ra, self.popped) = (self.sp.unwrap_or(0), None);
        }
        if effect.pops.is_some() && self.sp == Some(self.ra) {
            self.popped = effect.pops;
        }
        if effect.loads_fp.is_some() && below(self.sp, effect.loads_fp) == Some(self.saved_fp) {
            (self.saved_fp, self.fp) = (0, None);
        }
        if effect.loads_ra.is_some() && below(self.sp, effect.loads_ra) == Some(self.ra) {
            self.ra = 0;
        }
        if let Some(offset) = effect.fp_from_sp {
            self.fp = self.sp.map(|sp| sp - offset);
        }
        self.move_sp(effect.moves_after);
        if effect.aligns_sp {
            self.sp = self.sp.and_then(|sp| sp.checked_add(15)).map(|sp| sp & !15);
        }
        if effect.loses_sp {
            self.sp = None;
        }
        if effect.loses_fp {
            self.fp = None;
        }
    }

    fn is_lost(&self) -> bool {
        self.sp.is_none() && self.fp.is_none()
    }

    /// Whether the return address lies below the stack pointer: it has just been popped, or is about to be
    /// pushed by a function that was jumped to from where it was popped.
    fn has_return_below(&self) -> bool {
        self.sp.is_some_and(|sp| sp < self.ra)
    }

    /// Whether the return address is not on the stack. Below the stack pointer it still is, where signals
    /// leave it alone.
    fn has_no_return(&self, arch: Arch) -> bool {
        match self.sp {
            Some(sp) if self.has_return_below() => self.ra - sp > arch.facts().red_zone_bytes,
            _ => self.popped.is_some(),
        }
    }

    fn move_sp(&mut self, bytes: i64) {
        self.sp = self.sp.and_then(|sp| sp.checked_sub(bytes));
    }

    fn rule(&self, arch: Arch, wide: &mut WideRules) -> TableRule {
        let (cfa_base, cfa) = match (self.sp, self.fp) {
            // What a loop pushes is not known.
            (_, Some(fp)) => (BASE_FP, fp),
            (Some(sp), None) => (BASE_SP, sp),
            (None, None) => return TableRule::NONE,
        };
        let narrow = |number: i64| i32::try_from(number).ok();
        let (Some(cfa_offset), Some(fp_offset), Some(ra_offset)) =
            (narrow(cfa), narrow(-self.saved_fp), narrow(-self.ra))
        else {
            return TableRule::NONE;
        };
        let rule = WideRule {
            cfa_base,
            cfa_offset,
            fp_rule: if fp_offset == 0 { FP_SAME } else { FP_AT_CFA },
            fp_offset,
            ra_rule: if ra_offset == 0 {
                RA_IN_LINK
            } else {
                RA_AT_CFA
            },
            ra_offset,
            ..WideRule::default()
        };
        arch::short(arch, &rule).map_or_else(
            || wide.rule(rule).unwrap_or(TableRule::NONE),
            TableRule::Short,
        )
    }
}

/// Functions are aligned to so much, where padding is.
const FUNCTION_ALIGNMENT: u64 = 16;

/// What is known of code beforehand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A compiler's: functions are aligned, and some jump by tables.
    Compiled,
    /// Functions one behind the other, without tables of jumps.
    Stubs,
    /// One function, which mostly has this frame.
    Function(Frame),
}

/// Code that is gone through.
pub(in crate::unwind) struct Sweep<'a> {
    arch: Arch,
    code: &'a [u8],
    start: u64,
    /// Where functions begin, ascending.
    functions: Vec<u64>,
    /// What is jumped to, or held in a table of jumps, ascending.
    targets: Vec<u64>,
    kind: Kind,
    /// The frame where a function begins.
    entry: Frame,
    /// The frame that the stack pointer is at when it comes from memory, if that is known.
    base: Option<Frame>,
    /// Whether it ever returns or jumps: zeros decode to instructions, too.
    pub is_code: bool,
}

impl<'a> Sweep<'a> {
    /// Code at an address; `functions` are those known to begin somewhere, and `data` gives what the
    /// file has at an address.
    pub fn new(
        arch: Arch,
        code: &'a [u8],
        start: u64,
        functions: &[u64],
        mut data: impl FnMut(u64) -> &'a [u8],
    ) -> Self {
        let range = start..start + code.len() as u64;
        let mut functions = functions.to_vec();
        let mut targets = Vec::new();
        let mut tables = FxHashSet::default();
        let mut is_code = false;
        for (_, instruction) in instructions(arch, code, start) {
            is_code |= instruction.flow.is_way_out();
            match instruction.refers_to {
                Some(addr) if !range.contains(&addr) => {
                    if tables.len() < MAX_TABLES && tables.insert(addr) {
                        targets.extend(jump_table(data(addr), addr, &range));
                    }
                }
                Some(addr) if arch.facts().jumps_from_addresses => targets.push(addr),
                addr => functions.extend(addr),
            }
            match instruction.flow {
                Flow::Call(target) => functions.push(target),
                Flow::Branch(target) | Flow::Jump(target) => targets.push(target),
                _ => {}
            }
        }
        for addrs in [&mut functions, &mut targets] {
            addrs.retain(|addr| range.contains(addr));
            addrs.sort_unstable();
            addrs.dedup();
        }
        Self {
            arch,
            code,
            start,
            functions,
            targets,
            kind: Kind::Compiled,
            entry: Frame::at_entry(arch),
            base: None,
            is_code,
        }
    }

    /// Code that was written by hand: functions lie one behind the other, and none jumps by a table.
    pub fn of_stubs(arch: Arch, code: &'a [u8], start: u64) -> Self {
        Self {
            kind: Kind::Stubs,
            ..Self::new(arch, code, start, &[], |_| &[])
        }
    }

    /// One function, entered at these addresses, whose frame is so long once it is made: with the caller's
    /// frame pointer below the return address.
    pub fn of_function(
        arch: Arch,
        code: &'a [u8],
        start: u64,
        entries: &[u64],
        frame_bytes: i64,
    ) -> Self {
        let mut functions = entries.to_vec();
        functions.sort_unstable();
        Self {
            arch,
            code,
            start,
            functions,
            targets: Vec::new(),
            kind: Kind::Function(Frame::of_bytes(frame_bytes)),
            entry: Frame::at_entry(arch),
            base: None,
            is_code: true,
        }
    }

    /// The same, entered by jumps: it pushes the return address itself.
    pub fn entered_by_jumps(mut self) -> Self {
        self.entry.sp = Some(0);
        self
    }

    /// The same, where stacks can be moved to memory and back: each then stands on a frame that is so long,
    /// to which the stack pointer is set from memory.
    pub fn with_base(mut self, frame_bytes: i64) -> Self {
        self.base = Some(Frame::of_bytes(frame_bytes));
        self
    }

    /// Hands each instruction's address and rule to `found`.
    pub fn run(&self, wide: &mut WideRules, mut found: impl FnMut(u64, TableRule)) {
        let (arch, entry) = (self.arch, self.entry);
        let mut frame = entry;
        // Nothing leads on to what comes; nothing does so for sure; and nothing led to where we are.
        let (mut is_dead, mut is_behind_call, mut is_guess) = (true, false, false);
        // The frames before the last way that did not end, and at the last computed jump.
        let (mut body, mut computed) = (entry, None);
        let mut arriving = Arriving::default();
        let (mut was_padding, mut was_push) = (false, false);
        for (addr, instruction) in instructions(arch, self.code, self.start) {
            let is_target = || self.targets.binary_search(&addr).is_ok();
            let arrived = arriving.take(addr);
            let loaded = self.base.filter(|_| instruction.effect.loads_sp);
            // What pads may also stand before the loop that a call is followed by.
            let is_aligned = was_padding && addr % FUNCTION_ALIGNMENT == 0;
            let may_begin = (is_dead || is_behind_call) && is_aligned && !instruction.is_padding;
            let begins = match self.kind {
                Kind::Compiled => {
                    may_begin && (instruction.is_prologue() || (!is_dead && !is_target()))
                }
                _ => is_dead && arrived.is_none() && instruction.pushes_fp(arch),
            };
            if begins || self.functions.binary_search(&addr).is_ok() {
                (frame, body, computed) = (entry, entry, None);
                (is_dead, is_guess) = (false, false);
            } else if (is_dead || is_guess || frame.is_lost())
                && let Some(arrived) = arrived
            {
                (frame, is_dead, is_guess) = (arrived, false, false);
            } else if is_dead && !instruction.is_padding {
                frame = match self.kind {
                    Kind::Function(frame) => frame,
                    _ if is_target() => computed.unwrap_or(body),
                    Kind::Compiled if !is_aligned => computed.unwrap_or(entry),
                    _ => entry,
                };
                (is_dead, is_guess) = (false, true);
                if let Some(base) = loaded {
                    // Nobody calls or jumps here: what stands on that frame returns here. What returns is
                    // looked up by the address before.
                    frame = base;
                    found(addr.saturating_sub(1), frame.rule(arch, wide));
                }
            }
            let is_handwritten = self.kind != Kind::Compiled;
            let overwrites_return = is_handwritten
                && matches!(instruction.flow, Flow::Call(_) | Flow::ComputedCall)
                && frame.has_return_below();
            let is_without_return = is_handwritten && frame.has_no_return(arch);
            found(
                addr,
                if is_without_return || overwrites_return {
                    TableRule::NONE
                } else {
                    frame.rule(arch, wide)
                },
            );
            was_padding = instruction.is_padding;
            if was_padding {
                continue;
            }
            let before = frame;
            if instruction.leaves() && frame.fp.is_none() && self.kind != Kind::Compiled {
                frame = entry;
            } else {
                frame.apply(&instruction.effect);
            }
            if overwrites_return {
                (frame.sp, frame.fp) = (None, None);
            }
            match (self.kind, loaded) {
                (_, Some(base)) => frame = base,
                (Kind::Function(known), _) if frame.is_lost() => {
                    (frame, is_guess) = (known, true);
                }
                _ => {}
            }
            let makes_record = was_push && instruction.effect.fp_from_sp == Some(0);
            if makes_record && is_guess && matches!(self.kind, Kind::Function(_)) {
                (frame, is_guess) = (Frame::WITH_RECORD, false);
            }
            was_push = instruction.pushes_fp(arch);
            is_behind_call = false;
            match instruction.flow {
                Flow::Next | Flow::ComputedCall => {}
                Flow::Call(_) => (body, is_behind_call) = (before, true),
                Flow::Branch(target) => {
                    body = frame;
                    arriving.push(target, frame, is_guess);
                }
                Flow::Jump(target) => {
                    body = frame;
                    arriving.push(target, frame, is_guess);
                    is_dead = true;
                }
                Flow::ComputedJump => {
                    let has_table = self.kind == Kind::Compiled && before != entry;
                    computed = has_table.then_some(before);
                    is_dead = true;
                }
                Flow::Return | Flow::End => is_dead = true,
            }
        }
    }

    /// Where the code ends that a process starts with at `entry`: it leaves for good, or another
    /// function begins.
    pub fn end_of_start(&self, entry: u64) -> u64 {
        let max = entry.saturating_add(self.arch.facts().start_bytes);
        let next = self.functions.partition_point(|addr| *addr <= entry);
        let next = self.functions.get(next).copied().unwrap_or(max);
        let into = entry.saturating_sub(self.start) as usize;
        let code = self.code.get(into..).unwrap_or_default();
        let left = instructions(self.arch, code, entry)
            .find(|(_, instruction)| instruction.flow.is_way_out() || instruction.flow == Flow::End)
            .map_or(max, |(addr, instruction)| addr + instruction.bytes as u64);
        max.min(next).min(left)
    }
}

/// The rule where a function begins.
pub(in crate::unwind) fn entry_rule(arch: Arch, wide: &mut WideRules) -> TableRule {
    Frame::at_entry(arch).rule(arch, wide)
}

/// Frames where jumps forward lead to, by address.
#[derive(Default)]
struct Arriving(FxHashMap<u64, (Frame, bool)>);

impl Arriving {
    /// A jump leads there with this frame. The first one counts that is no guess.
    fn push(&mut self, target: u64, frame: Frame, is_guess: bool) {
        let known = self.0.entry(target).or_insert((frame, is_guess));
        if known.1 && !is_guess {
            *known = (frame, false);
        }
    }

    /// The frame with which an address is reached for sure, or else the guess.
    fn take(&mut self, addr: u64) -> Option<Frame> {
        self.0.remove(&addr).map(|(frame, _)| frame)
    }
}

/// Entries of a table of jumps that are read.
const MAX_TABLE_ENTRIES: usize = 1024;
/// Places that are looked at as such tables, in one stretch of code: 64 MiB of entries at most.
const MAX_TABLES: usize = 8192;

/// The addresses in a range that a table holds, which lies at an address: relative to it in four
/// bytes, or absolute in eight. What is no table holds none.
fn jump_table(table: &[u8], addr: u64, range: &Range<u64>) -> Vec<u64> {
    let is_inside = |target: &u64| range.contains(target);
    let relative = table
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| addr.wrapping_add_signed(i32::from_le_bytes(*bytes).into()));
    let mut targets: Vec<_> = relative
        .take(MAX_TABLE_ENTRIES)
        .take_while(is_inside)
        .collect();
    if targets.is_empty() {
        let absolute = table
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes));
        targets.extend(absolute.take(MAX_TABLE_ENTRIES).take_while(is_inside));
    }
    targets
}

/// The instructions of code at an address.
pub(in crate::unwind) fn instructions(
    arch: Arch,
    code: &[u8],
    start: u64,
) -> impl Iterator<Item = (u64, Instruction)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = code.get(at..).filter(|rest| !rest.is_empty())?;
        let addr = start + at as u64;
        let instruction = (arch.facts().decode)(rest, addr);
        at += instruction.bytes.max(1);
        Some((addr, instruction))
    })
}
