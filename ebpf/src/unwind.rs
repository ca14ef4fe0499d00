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
        BASE_FP, FP_AT_CFA, FP_AT_FP, MAPPING_WORDS, MAX_MAPPINGS, Mapping, PAGE_BYTES,
        ProcessTable, ROW_SEARCH_STEPS, Rule, WideRule, row_addr, row_rule,
    },
};

use crate::verifier::opaque;

/// Reads the memory of the process that is being unwound.
pub trait ReadMemory {
    /// Fills `words` from `addr` on; false when any of it cannot be read.
    fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool;
    /// Reads one word; the way out when a whole window crosses the stack's end.
    fn read_word(&mut self, addr: u64) -> Option<u64>;
}

/// The unwind tables, as [`hotspan_abi::unwind`] lays them out.
pub trait Tables {
    /// A word of the space; 0 outside of it.
    fn word(&self, index: u32) -> u32;
    /// Two neighbouring words, the first in the lower half; 0 outside of the space. For places where
    /// small code matters more than speed.
    fn pair(&self, index: u32) -> u64 {
        u64::from(self.word(index)) | u64::from(self.word(index.wrapping_add(1))) << 32
    }
    /// A wide rule.
    fn wide(&self, index: u32) -> Option<WideRule>;
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
    /// The mapping that was used last.
    pub mapping: Mapping,
    /// 1 when the instruction pointer is no return address: in a leaf, or where a signal hit.
    pub is_exact: u32,
    _pad: u32,
    /// The part of the stack that was read last.
    pub window: Window,
}

/// First address that cannot be a user's on x86-64 or arm64 with 48-bit addresses.
const USER_END: u64 = 1 << 48;

impl Unwinder {
    /// Starts at a leaf with these registers.
    #[inline(always)]
    pub fn start(&mut self, registers: Registers, process: ProcessTable) {
        self.registers = registers;
        self.process = process;
        self.mapping.start = 0;
        self.mapping.end = 0;
        self.is_exact = 1;
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

    /// Whether the frame we are at lies in the mapping that was used last.
    #[inline(always)]
    pub fn is_in_mapping(&self) -> bool {
        let addr = self.lookup_addr();
        self.mapping.start <= addr && addr < self.mapping.end
    }

    /// The rule for the frame we are at, which lies in the mapping that was used last.
    #[inline(always)]
    pub fn find_rule<T: Tables>(&self, tables: &T) -> Rule {
        if self.mapping.pages == Mapping::NO_TABLE {
            return Rule::FRAME_POINTER;
        }
        find_row(&self.mapping, self.lookup_addr(), tables)
    }

    /// Finds the mapping of the frame we are at by halving: the last that starts at or below it.
    /// False when it lies in none that is known.
    #[inline(always)]
    pub fn find_mapping<T: Tables>(&mut self, tables: &T) -> bool {
        let addr = self.lookup_addr();
        let base = self.process.mappings;
        let (mut low, mut high) = (0, self.process.count);
        for _ in 0..=MAX_MAPPINGS.trailing_zeros() {
            if low >= high {
                break;
            }
            let middle = (low + high) >> 1;
            if tables.pair(base.wrapping_add(middle.wrapping_mul(MAPPING_WORDS))) <= addr {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == 0 {
            return false;
        }
        let at = base.wrapping_add((low - 1).wrapping_mul(MAPPING_WORDS));
        let pages = tables.pair(at.wrapping_add(6));
        self.mapping = Mapping {
            start: tables.pair(at),
            end: tables.pair(at.wrapping_add(2)),
            pages_start: tables.pair(at.wrapping_add(4)),
            pages: pages as u32,
            page_count: (pages >> 32) as u32,
        };
        addr < self.mapping.end
    }

    /// Goes to the caller by `rule`.
    #[inline(always)]
    pub fn step<M: ReadMemory, T: Tables>(
        &mut self,
        rule: Rule,
        memory: &mut M,
        tables: &T,
    ) -> Step {
        match rule.kind() {
            Rule::FROM_SP | Rule::FROM_FP => {
                let registers = &self.registers;
                let base = if rule.kind() == Rule::FROM_SP {
                    registers.sp
                } else {
                    registers.fp
                };
                let cfa = base.wrapping_add(rule.cfa_bytes());
                let fp_at = match rule.fp_bytes() {
                    0 => 0,
                    bytes => cfa.wrapping_sub(bytes),
                };
                self.pop(cfa, fp_at, memory)
            }
            Rule::WIDE => match tables.wide(rule.wide_index()) {
                Some(wide) => self.step_wide(&wide, memory),
                None => Step::Stop(StopReason::NoUnwindTable),
            },
            _ if rule == Rule::ROOT => Step::Stop(StopReason::Root),
            _ if rule == Rule::FRAME_POINTER => self.step_frame_pointer(memory),
            _ if rule == Rule::SIGNAL => self.step_signal(memory),
            _ if rule == Rule::PLT => {
                let pushed = if self.registers.ip & 15 >= 11 { 16 } else { 8 };
                self.pop(self.registers.sp.wrapping_add(pushed), 0, memory)
            }
            _ => Step::Stop(StopReason::NoUnwindTable),
        }
    }

    #[inline(always)]
    fn step_wide<M: ReadMemory>(&mut self, rule: &WideRule, memory: &mut M) -> Step {
        let registers = self.registers;
        let base = if rule.cfa_base == BASE_FP {
            registers.fp
        } else {
            registers.sp
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
        let fp_at = match rule.fp_rule {
            FP_AT_CFA => cfa.wrapping_add_signed(rule.fp_offset as i64),
            FP_AT_FP => registers.fp.wrapping_add_signed(rule.fp_offset as i64),
            _ => 0,
        };
        self.pop(cfa, fp_at, memory)
    }

    /// Makes the registers those of the caller: the return address is below the CFA, the frame
    /// pointer at `fp_at` unless that is 0.
    #[inline(always)]
    fn pop<M: ReadMemory>(&mut self, cfa: u64, fp_at: u64, memory: &mut M) -> Step {
        // The stack grows down: a caller's frame lies above its callee's.
        if cfa <= self.registers.sp || (cfa | fp_at) & 7 != 0 || cfa >= USER_END {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        // The saved frame pointer lies lower: read it first, and the window holds both.
        if fp_at != 0 {
            let Some(fp) = self.window.word(fp_at, memory) else {
                return Step::Stop(StopReason::StackReadFailed);
            };
            self.registers.fp = fp;
        }
        let Some(return_address) = self.window.word(cfa - 8, memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        self.arrive(return_address, cfa)
    }

    /// Goes to the caller by the frame pointer: it points at the saved frame pointer of the caller,
    /// and the return address lies above it (System V ABI for x86-64, §3.2.2; AAPCS64, §6.4.6).
    #[inline(always)]
    fn step_frame_pointer<M: ReadMemory>(&mut self, memory: &mut M) -> Step {
        let frame = self.registers.fp;
        if frame == 0 {
            return Step::Stop(StopReason::FramePointerEnd);
        }
        // A frame below the stack pointer, or not aligned, is some other value that the compiler
        // keeps in this register.
        if frame < self.registers.sp || frame & 7 != 0 || frame >= USER_END {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        match self.pop(frame + 16, frame, memory) {
            Step::Stop(StopReason::Root) => Step::Stop(StopReason::FramePointerEnd),
            step => step,
        }
    }

    /// Goes to where a signal hit: in its trampoline the stack pointer is at the `ucontext`, whose
    /// `uc_mcontext` holds all registers (x86-64, `struct sigcontext`).
    #[inline(always)]
    fn step_signal<M: ReadMemory>(&mut self, memory: &mut M) -> Step {
        const FP: u64 = 120;
        const SP: u64 = 160;
        const IP: u64 = 168;
        let context = self.registers.sp;
        if context & 7 != 0 {
            return Step::Stop(StopReason::NoUnwindTable);
        }
        let fp = self.window.word(context.wrapping_add(FP), memory);
        let sp = self.window.word(context.wrapping_add(SP), memory);
        let ip = self.window.word(context.wrapping_add(IP), memory);
        let (Some(fp), Some(sp), Some(ip)) = (fp, sp, ip) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        self.registers.fp = fp;
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
        Step::Caller
    }
}

/// The rule for an address in a mapping with a table: the last row at or below it in its page, or
/// the row before the page's first.
#[inline(always)]
fn find_row<T: Tables>(mapping: &Mapping, addr: u64, tables: &T) -> Rule {
    let into = addr.wrapping_sub(mapping.pages_start);
    let page = (into / PAGE_BYTES) as u32;
    if page >= mapping.page_count {
        return Rule::NONE;
    }
    let low_byte = (into % PAGE_BYTES) as u32;
    let at = mapping.pages.wrapping_add(page);
    let (mut low, mut high) = (tables.word(at), tables.word(at.wrapping_add(1)));
    for _ in 0..ROW_SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + ((high - low) >> 1);
        if row_addr(tables.word(middle)) <= low_byte {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    row_rule(tables.word(low.wrapping_sub(1)))
}
