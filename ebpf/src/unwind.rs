//! User-stack unwinding, one frame at a time, over any memory and any tables.
//!
//! A step takes the registers of one frame and makes them those of its caller. By a table where the
//! code has one; by the frame pointer where it has none, never instead of a table, because
//! compilers leave the frame pointer out of leaf functions even where they keep it elsewhere.
//!
//! The stack is read through a [`Window`]: one read of 1 KiB costs about as much as one of eight
//! bytes, and serves many frames.

use hotspan_abi::{
    limits::WINDOW_WORDS,
    records::StopReason,
    unwind::{
        BASE_ALIGNED, BASE_BY_CALLER, BASE_FIRST_SCRATCH, BASE_FP, BASE_OTHER_STACK,
        BASE_SECOND_SCRATCH, FP_AT_CFA, FP_AT_FP, MAPPING_WORDS, MAX_MAPPINGS, Mapping, PAGE_BYTES,
        ProcessTable, RA_AT_FP, RA_IN_LINK, ROW_SEARCH_STEPS, Rule, SEGMENT_WORDS, WideRule,
        place_in_page, row_addr, row_rule,
    },
};

use crate::{
    arch::Arch,
    verifier::{Forgotten, opaque},
};

/// Reads the memory of the process that is being unwound.
pub trait ReadMemory {
    /// The processor that the process runs on.
    type Arch: Arch;

    /// Fills `words` from `addr` on; false when any of it cannot be read.
    fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool;
    /// Reads one word; the way out when a whole window crosses the stack's end.
    fn read_word(&mut self, addr: u64) -> Option<u64>;
}

/// The unwind tables, as [`hotspan_abi::unwind`] lays them out.
pub trait Tables {
    /// The words of one segment.
    type Words<'a>: Words
    where
        Self: 'a;

    /// The segment that an index lies in.
    fn segment(&self, index: u32) -> Option<Self::Words<'_>>;
    /// A wide rule.
    fn wide(&self, index: u32) -> Option<WideRule>;
}

/// The words of one segment.
pub trait Words {
    /// The word at an index into the space, of which the part inside the segment counts.
    fn word(&self, index: u32) -> u32;

    /// Two neighbouring words, the first in the lower half.
    #[inline(always)]
    fn pair(&self, index: u32) -> u64 {
        u64::from(self.word(index)) | u64::from(self.word(index.wrapping_add(1))) << 32
    }
}

impl Words for &[u32; SEGMENT_WORDS] {
    #[inline(always)]
    fn word(&self, index: u32) -> u32 {
        self[opaque(u64::from(index)) as usize & (SEGMENT_WORDS - 1)]
    }
}

/// The start of a segment; behind it there are zeros.
impl Words for &[u32] {
    fn word(&self, index: u32) -> u32 {
        let index = index as usize % SEGMENT_WORDS;
        self.get(index).copied().unwrap_or(0)
    }
}

/// The registers that unwinding needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// Instruction pointer: of the sample at first, then return addresses.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
    /// The register that holds the return address of a function that has not saved it, see
    /// [`Rule::link`]: x30 on arm64. On x86-64 rdi, where glibc's `vfork` keeps it. It belongs to an
    /// exact `ip` alone.
    pub link: u64,
    /// The register of [`BASE_ALIGNED`]: rbx on x86-64, x19 on arm64. It belongs to an exact `ip`
    /// alone.
    pub aligned: u64,
    /// The register that system calls return their result in: rax on x86-64, x0 on arm64. It belongs to
    /// an exact `ip` alone.
    pub result: u64,
    /// The registers of [`BASE_FIRST_SCRATCH`] and [`BASE_SECOND_SCRATCH`]: r10 and r11 on x86-64, x9 and x12 on
    /// arm64. They belong to an exact `ip` alone.
    pub scratch: [u64; 2],
}

/// The part of the stack that was read last.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Window {
    /// Address of the first word; 0 when nothing was read yet.
    pub start: u64,
    /// The words.
    pub words: [u64; WINDOW_WORDS],
}

impl Window {
    /// A window with nothing in it.
    pub const EMPTY: Self = Self {
        start: 0,
        words: [0; WINDOW_WORDS],
    };

    /// The word at `addr`, which must be a multiple of eight.
    #[inline(always)]
    pub fn word<M: ReadMemory>(&mut self, addr: u64, memory: &mut M) -> Option<u64> {
        let mut index = addr.wrapping_sub(self.start) >> 3;
        if self.start == 0 || index >= WINDOW_WORDS as u64 {
            if !memory.read_words(addr, &mut self.words) {
                self.start = 0;
                return memory.read_word(addr);
            }
            self.start = addr;
            index = 0;
        }
        Some(self.words[opaque(index) as usize & (WINDOW_WORDS - 1)])
    }
}

/// A search by halving: what is looked for lies from `low` on and before `high`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Search {
    low: Forgotten<u32>,
    high: Forgotten<u32>,
}

/// A rule that was found before: a thread's outer frames are the same from sample to sample, and to find their
/// rules anew takes memory that nobody has touched since.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct KnownRule {
    /// What it was looked up for.
    addr: u64,
    /// In which list of mappings: a process that replaces its program has another one.
    mappings: u32,
    rule: Rule,
}

/// Known rules: 1 KiB.
const KNOWN_RULES: usize = 64;

impl KnownRule {
    /// For no address.
    const NONE: Self = Self {
        addr: u64::MAX,
        mappings: 0,
        rule: Rule::NONE,
    };

    /// Where the rule for an address is, if it is known (Fibonacci hashing: Knuth, The Art of Computer Programming,
    /// volume 3, section 6.4).
    #[inline(always)]
    fn place(addr: u64) -> usize {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        (addr.wrapping_mul(GOLDEN) >> (u64::BITS - KNOWN_RULES.trailing_zeros())) as usize
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The registers are now the caller's.
    Caller,
    /// There is no caller, or no way to it.
    Stop(StopReason),
}

/// A stack that is being unwound.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Unwinder {
    /// The registers of the frame we are at.
    pub registers: Registers,
    /// What is known of the process; no mappings for one that is not known.
    pub process: ProcessTable,
    /// The two mappings that were used last: calls go back and forth between a program and a library.
    recent: [Mapping; 2],
    /// Which of them was used last.
    last: u32,
    /// 1 when the instruction pointer is no return address: in a leaf, or where a signal hit.
    pub is_exact: u32,
    /// How sure the frames are: [`SURE`], [`LOST`] or [`GUESSED`].
    pub doubt: u32,
    /// 1 when the stack pointer is only known not to be above its caller's.
    is_sp_guessed: u32,
    /// How often a step led down.
    descents: u32,
    /// The search under way.
    search: Search,
    /// Rules in this process and others, each in its place.
    known: [KnownRule; KNOWN_RULES],
    /// The part of the stack that was read last.
    pub window: Window,
}

/// Holds no address.
const NOWHERE: Mapping = Mapping {
    start: 0,
    end: 0,
    pages_start: 0,
    pages: 0,
    page_count: 0,
};

/// Every frame was found by a table.
pub const SURE: u32 = 0;
/// By tables, the stack led to code in no mapping that is known. From there on it is a guess.
pub const LOST: u32 = 1;
/// Code that is known to have no table was unwound by the frame pointer.
pub const GUESSED: u32 = 2;

/// Halvings that leave one of the mappings.
const MAPPING_SEARCH_STEPS: u64 = MAX_MAPPINGS.trailing_zeros() as u64 + 1;

/// First address that cannot be a user's on x86-64 or arm64 with 48-bit addresses.
const USER_END: u64 = 1 << 48;

/// Frames rise on a stack, so each stack ends. A signal's stack may lie above the one that it hit, and
/// a goroutine's below that of its thread: a sample may go down so often, which bounds how many
/// stacks it goes through.
const MAX_DESCENTS: u32 = 4;

impl Unwinder {
    /// At no frame yet.
    pub const EMPTY: Self = Self {
        registers: Registers {
            ip: 0,
            sp: 0,
            fp: 0,
            link: 0,
            aligned: 0,
            result: 0,
            scratch: [0; 2],
        },
        process: ProcessTable {
            mappings: 0,
            count: 0,
            is_changing: 0,
        },
        recent: [NOWHERE; 2],
        last: 0,
        is_exact: 0,
        doubt: SURE,
        is_sp_guessed: 0,
        descents: 0,
        search: Search {
            low: Forgotten::ZERO,
            high: Forgotten::ZERO,
        },
        known: [KnownRule::NONE; KNOWN_RULES],
        window: Window::EMPTY,
    };

    /// Goes to another process, or to one whose mappings have changed.
    #[inline(always)]
    pub fn enter(&mut self, process: ProcessTable) {
        self.process = process;
        self.recent[0].end = 0;
        self.recent[1].end = 0;
    }

    /// Forgets the rules that were found: tables or lists of mappings have changed.
    #[inline(always)]
    pub fn forget_rules(&mut self) {
        for known in &mut self.known {
            known.addr = u64::MAX;
        }
    }

    /// Starts at a leaf with these registers, in the process that was entered last.
    #[inline(always)]
    pub fn start(&mut self, registers: Registers) {
        self.registers = registers;
        self.is_exact = 1;
        self.doubt = SURE;
        self.is_sp_guessed = 0;
        self.descents = 0;
        self.window.start = 0;
    }

    /// The address to look the frame up with: inside the call instruction for a return address,
    /// because a call can be the last instruction of its function.
    #[inline(always)]
    fn lookup_addr(&self) -> u64 {
        self.registers
            .ip
            .wrapping_sub(u64::from(1 - (self.is_exact & 1)))
    }

    /// Whether the frame we are at lies in one of the two mappings that were used last, which is then
    /// the last.
    #[inline(always)]
    pub fn is_in_mapping(&mut self) -> bool {
        let addr = self.lookup_addr();
        if self.mapping().holds(addr) {
            return true;
        }
        self.last ^= 1;
        self.mapping().holds(addr)
    }

    /// The mapping that was used last.
    #[inline(always)]
    pub fn mapping(&mut self) -> &mut Mapping {
        &mut self.recent[opaque(self.last.into()) as usize & 1]
    }

    /// The rule for the frame we are at, if it was found before.
    #[inline(always)]
    pub fn known_rule(&self) -> Option<Rule> {
        let addr = self.lookup_addr();
        let known = &self.known[KnownRule::place(addr)];
        let is_it = known.addr == addr && known.mappings == self.process.mappings;
        (is_it && self.process.count != 0).then_some(known.rule)
    }

    /// The rule for the frame we are at, which lies in the mapping that was used last.
    #[inline(always)]
    pub fn find_rule<T: Tables>(&mut self, tables: &T) -> Rule {
        let addr = self.lookup_addr();
        let mapping = *self.mapping();
        if mapping.page_count == 0 {
            return self.guess(GUESSED);
        }
        let rule = find_row(&mapping, addr, &mut self.search, tables);
        self.known[KnownRule::place(addr)] = KnownRule {
            addr,
            mappings: self.process.mappings,
            rule,
        };
        rule
    }

    /// The rule for a frame in no mapping that is known: the code may still keep the frame pointer.
    #[inline(always)]
    pub fn rule_elsewhere(&mut self) -> Rule {
        self.guess(LOST)
    }

    #[inline(always)]
    fn guess(&mut self, doubt: u32) -> Rule {
        if self.doubt == SURE {
            self.doubt = doubt;
        }
        Rule::FRAME_POINTER
    }

    /// Finds the mapping of the frame we are at by halving: the last that starts at or below it.
    /// False when it lies in none that is known.
    #[inline(always)]
    pub fn find_mapping<T: Tables>(&mut self, tables: &T) -> bool {
        let addr = self.lookup_addr();
        let base = self.process.mappings;
        let Some(words) = tables.segment(base) else {
            return false;
        };
        self.search.low.set(0);
        self.search.high.set(self.process.count.into());
        let mut steps = opaque(MAPPING_SEARCH_STEPS);
        while steps != 0 {
            let (low, high) = (self.search.low.get(), self.search.high.get());
            if low >= high {
                break;
            }
            steps -= 1;
            let middle = low + ((high - low) >> 1);
            if words.pair(base.wrapping_add(middle.wrapping_mul(MAPPING_WORDS))) <= addr {
                self.search.low.set(middle + 1);
            } else {
                self.search.high.set(middle);
            }
        }
        let low = self.search.low.get();
        if low == 0 {
            return false;
        }
        let at = base.wrapping_add((low - 1).wrapping_mul(MAPPING_WORDS));
        // It takes the place of the one that was used last but one.
        let mapping = Mapping {
            start: words.pair(at),
            end: words.pair(at.wrapping_add(2)),
            pages_start: words.pair(at.wrapping_add(4)),
            pages: words.word(at.wrapping_add(6)),
            page_count: words.word(at.wrapping_add(7)),
        };
        *self.mapping() = mapping;
        mapping.holds(addr)
    }

    /// The rule for the frame we are at, however it is found. The kernel side takes the same steps, of which
    /// its verifier wants some apart.
    #[inline(always)]
    pub fn rule<T: Tables>(&mut self, tables: &T) -> Rule {
        if let Some(rule) = self.known_rule() {
            rule
        } else if self.is_in_mapping() || self.find_mapping(tables) {
            self.find_rule(tables)
        } else {
            self.rule_elsewhere()
        }
    }

    /// Goes to the caller by `rule`.
    #[inline(always)]
    pub fn step<M: ReadMemory, T: Tables>(
        &mut self,
        rule: Rule,
        memory: &mut M,
        tables: &T,
    ) -> Step {
        if rule.is_plain() {
            self.step_plain(rule, memory)
        } else {
            self.step_other(rule, memory, tables)
        }
    }

    /// Goes to the caller by a plain rule, as nearly all are.
    #[inline(always)]
    pub fn step_plain<M: ReadMemory>(&mut self, rule: Rule, memory: &mut M) -> Step {
        let registers = &self.registers;
        let base = if rule.kind() == Rule::FROM_FP {
            registers.fp
        } else if self.is_sp_guessed::<M>() {
            // Behind a call the frame pointer is at its record: so far below the CFA.
            match rule.fp_bytes() {
                0 => return Step::Stop(StopReason::NoUnwindTable),
                below => (registers.fp.wrapping_add(below)).wrapping_sub(rule.cfa_bytes()),
            }
        } else {
            registers.sp
        };
        let cfa = base.wrapping_add(rule.cfa_bytes());
        let fp_at = match rule.fp_bytes() {
            0 => 0,
            bytes => cfa.wrapping_sub(bytes),
        };
        let ra_at = M::Arch::return_address_at(base, cfa, rule.fp_bytes());
        self.pop(cfa, fp_at, ra_at, memory)
    }

    /// Goes to the caller by a rule that is not plain.
    #[inline(always)]
    pub fn step_other<M: ReadMemory, T: Tables>(
        &mut self,
        rule: Rule,
        memory: &mut M,
        tables: &T,
    ) -> Step {
        match rule {
            Rule::ROOT => Step::Stop(StopReason::Root),
            Rule::FRAME_POINTER => self.step_frame_pointer(memory),
            Rule::UNSEEN => {
                self.guess(LOST);
                self.step_frame_pointer(memory)
            }
            Rule::SIGNAL => self.step_signal(memory),
            Rule::SWITCH => self.step_switch(memory),
            Rule::NEW_THREAD if self.is_exact != 0 && self.registers.result == 0 => {
                Step::Stop(StopReason::Root)
            }
            Rule::NEW_THREAD if M::Arch::CALL_PUSHES == 0 => self.step_link::<M>(self.registers.sp),
            Rule::NEW_THREAD => {
                let sp = self.registers.sp;
                self.pop(sp.wrapping_add(M::Arch::CALL_PUSHES), 0, sp, memory)
            }
            Rule::PLT => {
                let above = M::Arch::plt_cfa_bytes(self.registers.ip);
                let cfa = self.registers.sp.wrapping_add(above);
                self.pop(cfa, 0, cfa.wrapping_sub(8), memory)
            }
            _ if rule.is_link() => {
                self.step_link::<M>(self.registers.sp.wrapping_add(rule.cfa_bytes()))
            }
            _ if rule.kind() == Rule::WIDE => match tables.wide(rule.wide_index()) {
                Some(wide) => self.step_wide(&wide, memory),
                None => Step::Stop(StopReason::NoUnwindTable),
            },
            _ => Step::Stop(StopReason::NoUnwindTable),
        }
    }

    #[inline(always)]
    fn is_sp_guessed<M: ReadMemory>(&self) -> bool {
        !M::Arch::RECORD_ENDS_FRAME && self.is_sp_guessed != 0
    }

    #[inline(always)]
    fn step_wide<M: ReadMemory>(&mut self, rule: &WideRule, memory: &mut M) -> Step {
        let registers = self.registers;
        let base = match rule.cfa_base {
            BASE_FP => registers.fp,
            BASE_ALIGNED | BASE_FIRST_SCRATCH | BASE_SECOND_SCRATCH if self.is_exact == 0 => {
                return Step::Stop(StopReason::NoUnwindTable);
            }
            BASE_ALIGNED => registers.aligned,
            BASE_FIRST_SCRATCH => registers.scratch[0],
            BASE_SECOND_SCRATCH => registers.scratch[1],
            BASE_OTHER_STACK => registers.fp,
            BASE_BY_CALLER => return self.step_by_caller(rule, memory),
            _ if self.is_sp_guessed::<M>() => {
                if rule.fp_rule != FP_AT_CFA || rule.cfa_is_read != 0 {
                    return Step::Stop(StopReason::NoUnwindTable);
                }
                let below = rule.fp_offset as i64 + rule.cfa_offset as i64;
                registers.fp.wrapping_sub(below as u64)
            }
            _ => registers.sp,
        };
        let mut cfa = base.wrapping_add_signed(rule.cfa_offset as i64);
        if rule.cfa_is_read != 0 {
            if cfa & 7 != 0 {
                return Step::Stop(StopReason::NoUnwindTable);
            }
            let Some(read) = self.window.word(cfa, memory) else {
                return Step::Stop(StopReason::StackReadFailed);
            };
            cfa = read.wrapping_add_signed(rule.cfa_addend as i64);
        }
        if rule.ra_rule == RA_IN_LINK {
            return self.step_link::<M>(cfa);
        }
        let fp_at = match rule.fp_rule {
            FP_AT_CFA => cfa.wrapping_add_signed(rule.fp_offset as i64),
            FP_AT_FP => registers.fp.wrapping_add_signed(rule.fp_offset as i64),
            _ => 0,
        };
        let ra_base = match rule.ra_rule {
            RA_AT_FP => registers.fp,
            _ => cfa,
        };
        let ra_at = ra_base.wrapping_add_signed(rule.ra_offset as i64);
        let may_go = if rule.cfa_base == BASE_OTHER_STACK {
            cfa < USER_END && self.may_go_to(cfa)
        } else {
            self.may_rise_to(cfa)
        };
        if !may_go {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        self.load(cfa, fp_at, ra_at, memory)
    }

    /// Goes to the caller from whichever of two frames is there.
    #[inline(always)]
    fn step_by_caller<M: ReadMemory>(&mut self, rule: &WideRule, memory: &mut M) -> Step {
        if self.is_sp_guessed::<M>() {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        let mut cfa = (self.registers.sp).wrapping_add_signed(rule.cfa_offset as i64);
        let mut ra_at = cfa.wrapping_add_signed(rule.ra_offset as i64);
        let mut fp_at = 0;
        if ra_at & 7 != 0 {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        let Some(return_address) = self.window.word(ra_at, memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        // Data and stacks are far from code.
        let distance = return_address.wrapping_sub(self.registers.ip) as i64;
        let is_first =
            place_in_page(return_address) == rule.cfa_is_read && distance == distance as i32 as i64;
        if !is_first {
            cfa = cfa.wrapping_add_signed(rule.cfa_addend as i64);
            fp_at = cfa.wrapping_add_signed(rule.fp_offset as i64);
            ra_at = fp_at.wrapping_add(8);
        }
        self.pop(cfa, fp_at, ra_at, memory)
    }

    /// Makes the registers those of the caller: the return address is at `ra_at`, the frame pointer
    /// at `fp_at` unless that is 0.
    #[inline(always)]
    fn pop<M: ReadMemory>(&mut self, cfa: u64, fp_at: u64, ra_at: u64, memory: &mut M) -> Step {
        if !self.may_rise_to(cfa) {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        self.load(cfa, fp_at, ra_at, memory)
    }

    /// Whether a step on one stack may lead to this address. The stack grows down: a caller's frame lies
    /// above its callee's, but for a leaf that has just popped its return address.
    #[inline(always)]
    fn may_rise_to(&self, cfa: u64) -> bool {
        cfa.wrapping_add(u64::from(self.is_exact)) > self.registers.sp && cfa < USER_END
    }

    /// As [`Self::pop`], for a frame anywhere.
    #[inline(always)]
    fn load<M: ReadMemory>(&mut self, cfa: u64, fp_at: u64, ra_at: u64, memory: &mut M) -> Step {
        if (cfa | fp_at | ra_at) & 7 != 0 {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        // The saved frame pointer lies lower: read it first, and the window holds both.
        if fp_at != 0 {
            let Some(fp) = self.window.word(fp_at, memory) else {
                return Step::Stop(StopReason::StackReadFailed);
            };
            self.registers.fp = fp;
        }
        let Some(return_address) = self.window.word(ra_at, memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        self.arrive(M::Arch::without_signature(return_address), cfa)
    }

    /// Goes to the caller whose address is in the link register. The stack pointer may stay: behind
    /// this no address is exact, so it happens once in a row.
    #[inline(always)]
    fn step_link<M: ReadMemory>(&mut self, cfa: u64) -> Step {
        if self.is_exact == 0 || cfa < self.registers.sp || cfa >= USER_END || cfa & 7 != 0 {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        self.arrive(M::Arch::without_signature(self.registers.link), cfa)
    }

    /// Goes to the caller by the frame pointer: it points at the saved frame pointer of the caller,
    /// and the return address lies above it (System V ABI for x86-64, §3.2.2; AAPCS64, §6.4.6).
    #[inline(always)]
    fn step_frame_pointer<M: ReadMemory>(&mut self, memory: &mut M) -> Step {
        let frame = self.registers.fp;
        if frame == 0 {
            return Step::Stop(StopReason::FramePointerEnd);
        }
        // A frame below the stack pointer is some other value that the compiler keeps in this
        // register.
        if frame < self.registers.sp {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        match self.step_record(frame, memory) {
            Step::Stop(StopReason::Root) => Step::Stop(StopReason::FramePointerEnd),
            step => step,
        }
    }

    /// Goes to the stack that the frame pointer leads to, wherever that is.
    #[inline(always)]
    fn step_switch<M: ReadMemory>(&mut self, memory: &mut M) -> Step {
        let frame = self.registers.fp;
        if frame == 0 || !self.may_go_to(frame) {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        self.step_record(frame, memory)
    }

    /// Whether a step to another stack may lead to this address.
    #[inline(always)]
    fn may_go_to(&mut self, sp: u64) -> bool {
        self.descents += u32::from(sp < self.registers.sp);
        self.descents <= MAX_DESCENTS
    }

    /// Loads the frame record at an address.
    #[inline(always)]
    fn step_record<M: ReadMemory>(&mut self, frame: u64, memory: &mut M) -> Step {
        if frame >= USER_END {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        let step = self.load(frame + 16, frame, frame + 8, memory);
        self.is_sp_guessed = 1;
        step
    }

    /// Goes to where a signal hit: its trampoline finds all registers on the stack.
    #[inline(always)]
    fn step_signal<M: ReadMemory>(&mut self, memory: &mut M) -> Step {
        let frame = self.registers.sp;
        if frame & 7 != 0 || self.is_sp_guessed::<M>() {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        let places = M::Arch::SIGNAL_FRAME;
        // One after the other: of words that are looked at together LLVM moves those that were not
        // read around, too, which kernels before 6.3 refuse.
        let Some(fp) = self.window.word(frame.wrapping_add(places.fp), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let Some(link) = self.window.word(frame.wrapping_add(places.link), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let Some(aligned) = self.window.word(frame.wrapping_add(places.aligned), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let Some(result) = self.window.word(frame.wrapping_add(places.result), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let [first, second] = places.scratch;
        let Some(first) = self.window.word(frame.wrapping_add(first), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let Some(second) = self.window.word(frame.wrapping_add(second), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let Some(sp) = self.window.word(frame.wrapping_add(places.sp), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let Some(ip) = self.window.word(frame.wrapping_add(places.ip), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        if !self.may_go_to(sp) {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        self.registers.fp = fp;
        self.registers.link = link;
        self.registers.aligned = aligned;
        self.registers.result = result;
        self.registers.scratch = [first, second];
        let step = self.arrive(ip, sp);
        self.is_exact = 1;
        step
    }

    #[inline(always)]
    fn arrive(&mut self, ip: u64, sp: u64) -> Step {
        if ip == 0 {
            return Step::Stop(StopReason::Root);
        }
        if ip >= USER_END {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        self.registers.ip = ip;
        self.registers.sp = sp;
        self.is_exact = 0;
        self.is_sp_guessed = 0;
        Step::Caller
    }
}

/// The rule for an address in a mapping with a table: the last row at or below it in its page, or
/// the row before the page's first.
#[inline(always)]
fn find_row<T: Tables>(mapping: &Mapping, addr: u64, search: &mut Search, tables: &T) -> Rule {
    let into = addr.wrapping_sub(mapping.pages_start);
    let page = (into / PAGE_BYTES) as u32;
    if page >= mapping.page_count {
        return Rule::NONE;
    }
    let low_byte = (into % PAGE_BYTES) as u32;
    let Some(words) = tables.segment(mapping.pages) else {
        return Rule::NONE;
    };
    let at = mapping.pages.wrapping_add(page);
    search.low.set(words.word(at));
    search.high.set(words.word(at.wrapping_add(1)));
    // As a loop, since copies of its body would have to come from memory, each.
    let mut steps = opaque(ROW_SEARCH_STEPS);
    while steps != 0 {
        let (low, high) = (search.low.get(), search.high.get());
        if low >= high {
            break;
        }
        steps -= 1;
        let middle = low + ((high - low) >> 1);
        if row_addr(words.word(middle)) <= low_byte {
            search.low.set(middle + 1);
        } else {
            search.high.set(middle);
        }
    }
    row_rule(words.word(search.low.get().wrapping_sub(1)))
}

#[cfg(test)]
mod tests;
