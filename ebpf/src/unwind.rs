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
        // One after the other: of words that are looked at together LLVM moves those that were not
        // read around, too, which kernels before 6.3 refuse.
        let Some(fp) = self.window.word(context.wrapping_add(FP), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let Some(sp) = self.window.word(context.wrapping_add(SP), memory) else {
            return Step::Stop(StopReason::StackReadFailed);
        };
        let Some(ip) = self.window.word(context.wrapping_add(IP), memory) else {
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

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use hotspan_abi::unwind::{BASE_SP, FP_SAME, row};

    use super::*;

    /// Words from `base` on; everything else cannot be read.
    struct Memory {
        base: u64,
        words: Vec<u64>,
        reads: usize,
    }

    impl Memory {
        fn copy(&mut self, addr: u64, out: &mut [u64]) -> bool {
            self.reads += 1;
            let Some(first) = addr
                .checked_sub(self.base)
                .map(|bytes| (bytes / 8) as usize)
            else {
                return false;
            };
            let Some(words) = self.words.get(first..first.saturating_add(out.len())) else {
                return false;
            };
            out.copy_from_slice(words);
            true
        }
    }

    impl ReadMemory for Memory {
        fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool {
            self.copy(addr, words)
        }
        fn read_word(&mut self, addr: u64) -> Option<u64> {
            let mut word = [0];
            self.copy(addr, &mut word).then_some(word[0])
        }
    }

    #[derive(Default)]
    struct HostTables {
        words: Vec<u32>,
        wide: Vec<WideRule>,
    }

    impl Tables for HostTables {
        fn word(&self, index: u32) -> u32 {
            self.words.get(index as usize).copied().unwrap_or(0)
        }
        fn wide(&self, index: u32) -> Option<WideRule> {
            self.wide.get(index as usize).copied()
        }
    }

    const STACK: u64 = 0x7fff_0000_0000;
    const TEXT: u64 = 0x40_0000;

    /// One mapping at [`TEXT`] whose rows are given by offset into it.
    fn tables(rows: &[(u64, Rule)]) -> (HostTables, ProcessTable) {
        let page_count = rows
            .last()
            .map_or(0, |&(offset, _)| offset / PAGE_BYTES + 1) as u32;
        let pages = MAPPING_WORDS;
        let first_row = pages + page_count + 1;
        let mapping = Mapping {
            start: TEXT,
            end: TEXT + u64::from(page_count) * PAGE_BYTES,
            pages_start: TEXT,
            pages,
            page_count,
        };
        let mut words = mapping.to_words().to_vec();
        for page in 0..=u64::from(page_count) {
            let before = rows
                .iter()
                .filter(|&&(offset, _)| offset < page * PAGE_BYTES)
                .count();
            words.push(first_row + before as u32);
        }
        words.extend(rows.iter().map(|&(offset, rule)| row(offset, rule)));
        (
            HostTables {
                words,
                wide: Vec::new(),
            },
            ProcessTable {
                mappings: 0,
                count: 1,
            },
        )
    }

    fn walk(
        registers: Registers,
        memory: &mut Memory,
        tables: &HostTables,
        process: ProcessTable,
    ) -> (Vec<u64>, StopReason) {
        let mut unwinder = Unwinder {
            registers: Registers::default(),
            process: ProcessTable::default(),
            mapping: Mapping::default(),
            is_exact: 0,
            _pad: 0,
            window: Window::EMPTY,
        };
        unwinder.start(registers, process);
        let mut ips = Vec::new();
        for _ in 0..10_000 {
            let is_known = unwinder.is_in_mapping() || unwinder.find_mapping(tables);
            let rule = if is_known {
                unwinder.find_rule(tables)
            } else {
                Rule::FRAME_POINTER
            };
            match unwinder.step(rule, memory, tables) {
                Step::Caller => ips.push(unwinder.registers.ip),
                Step::Stop(reason) => return (ips, reason),
            }
        }
        panic!("a stack never ended");
    }

    fn walk_by_frame_pointer(registers: Registers, memory: &mut Memory) -> (Vec<u64>, StopReason) {
        walk(
            registers,
            memory,
            &HostTables::default(),
            ProcessTable::default(),
        )
    }

    fn from_sp(cfa: i64, fp: i64) -> Rule {
        Rule::from_register(Rule::FROM_SP, cfa, fp).unwrap()
    }

    /// A chain of `depth` frames of `frame_words` words, the last with a zero frame pointer.
    fn chain(depth: usize, frame_words: usize) -> Memory {
        let mut words = std::vec![0; depth * frame_words + 2];
        for i in 0..depth {
            let at = i * frame_words;
            let next = STACK + ((at + frame_words) * 8) as u64;
            words[at] = if i + 1 == depth { 0 } else { next };
            words[at + 1] = 0x10_0000 + i as u64;
        }
        Memory {
            base: STACK,
            words,
            reads: 0,
        }
    }

    fn start() -> Registers {
        Registers {
            ip: 0x10_1234,
            sp: STACK,
            fp: STACK,
        }
    }

    #[test]
    fn chain_of_frame_pointers_is_walked_to_its_zero() {
        let (ips, reason) = walk_by_frame_pointer(start(), &mut chain(400, 4));
        assert_eq!(ips, (0..400).map(|i| 0x10_0000 + i).collect::<Vec<_>>());
        assert_eq!(reason, StopReason::FramePointerEnd);
    }

    #[test]
    fn one_read_serves_many_frames() {
        let mut memory = chain(31, 4);
        memory.words.resize(1024, 0);
        walk_by_frame_pointer(start(), &mut memory);
        assert_eq!(memory.reads, 1);
    }

    #[test]
    fn unreadable_frame_stops_with_its_reason() {
        let registers = Registers {
            fp: STACK + (1 << 20),
            ..start()
        };
        let stopped = walk_by_frame_pointer(registers, &mut chain(3, 4));
        assert_eq!(stopped, (Vec::new(), StopReason::StackReadFailed));
    }

    #[test]
    fn frame_pointer_that_goes_down_or_is_odd_is_none() {
        for fp in [STACK - 8, STACK + 4, 1, u64::MAX - 7] {
            let registers = Registers { fp, ..start() };
            let stopped = walk_by_frame_pointer(registers, &mut chain(3, 4));
            assert_eq!(stopped, (Vec::new(), StopReason::NoUnwindTable));
        }
    }

    #[test]
    fn each_row_holds_up_to_the_next_across_pages() {
        let rows = [
            (0, Rule::NONE),
            (0x10, from_sp(8, 0)),
            (0x11, from_sp(16, 16)),
            (0x3f0, Rule::PLT),
            (0x400, Rule::ROOT),
        ];
        let (tables, process) = tables(&rows);
        let mapping = Mapping {
            start: TEXT,
            end: TEXT + 0x500,
            pages_start: TEXT,
            pages: 8,
            page_count: 5,
        };
        for offset in 0..0x500 {
            let wanted = rows
                .iter()
                .rev()
                .find(|&&(start, _)| start <= offset)
                .unwrap()
                .1;
            assert_eq!(
                find_row(&mapping, TEXT + offset, &tables),
                wanted,
                "{offset:#x}"
            );
        }
        assert_eq!(find_row(&mapping, TEXT + 0x500, &tables), Rule::NONE);
        assert_eq!(process.count, 1);
    }

    #[test]
    fn table_is_followed_from_a_frameless_leaf_to_the_root() {
        // leaf: nothing pushed; middle: frame of 24 bytes that saved rbp; root.
        let (tables, process) = tables(&[
            (0, from_sp(8, 0)),
            (0x100, from_sp(32, 16)),
            (0x200, Rule::ROOT),
        ]);
        let stack = std::vec![TEXT + 0x150, 1, 2, 0x77, TEXT + 0x210, 9];
        let mut memory = Memory {
            base: STACK,
            words: stack,
            reads: 0,
        };
        let registers = Registers {
            ip: TEXT + 5,
            sp: STACK,
            fp: 3,
        };
        let (ips, reason) = walk(registers, &mut memory, &tables, process);
        assert_eq!(
            (ips, reason),
            (std::vec![TEXT + 0x150, TEXT + 0x210], StopReason::Root)
        );
    }

    #[test]
    fn return_address_behind_a_function_is_looked_up_in_it() {
        // The call is the last instruction of the function before the root's.
        let (tables, process) = tables(&[(0, from_sp(8, 0)), (0x100, Rule::ROOT)]);
        let stack = std::vec![TEXT + 0x100, TEXT + 0x101];
        let mut memory = Memory {
            base: STACK,
            words: stack,
            reads: 0,
        };
        let registers = Registers {
            ip: TEXT + 5,
            sp: STACK,
            fp: 0,
        };
        let (ips, reason) = walk(registers, &mut memory, &tables, process);
        assert_eq!((ips.len(), reason), (2, StopReason::Root));
    }

    #[test]
    fn signal_goes_on_where_it_hit() {
        let (tables, process) = tables(&[
            (0, Rule::SIGNAL),
            (0x100, from_sp(8, 0)),
            (0x200, Rule::ROOT),
        ]);
        let mut stack = std::vec![0; 40];
        stack[15] = 0x55;
        stack[20] = STACK + 30 * 8;
        stack[21] = TEXT + 0x100; // The first instruction of its function: exact, not behind a call.
        stack[30] = TEXT + 0x201;
        let mut memory = Memory {
            base: STACK,
            words: stack,
            reads: 0,
        };
        let registers = Registers {
            ip: TEXT + 5,
            sp: STACK,
            fp: 0,
        };
        let (ips, reason) = walk(registers, &mut memory, &tables, process);
        assert_eq!(
            (ips, reason),
            (std::vec![TEXT + 0x100, TEXT + 0x201], StopReason::Root)
        );
    }

    #[test]
    fn cfa_that_is_read_from_the_stack_is_followed() {
        let (mut tables, process) = tables(&[(0, Rule::wide(0).unwrap()), (0x200, Rule::ROOT)]);
        tables.wide.push(WideRule {
            cfa_base: BASE_SP,
            cfa_offset: 8,
            cfa_is_read: 1,
            cfa_addend: 8,
            fp_rule: FP_SAME,
            fp_offset: 0,
        });
        let stack = std::vec![0, STACK + 24, 0, TEXT + 0x210, 0];
        let mut memory = Memory {
            base: STACK,
            words: stack,
            reads: 0,
        };
        let registers = Registers {
            ip: TEXT + 5,
            sp: STACK,
            fp: 0,
        };
        let (ips, reason) = walk(registers, &mut memory, &tables, process);
        assert_eq!((ips, reason), (std::vec![TEXT + 0x210], StopReason::Root));
    }

    #[test]
    fn any_words_and_any_tables_end_within_the_memory() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..3000 {
            let words = (0..300)
                .map(|_| match next() & 3 {
                    0 => next(),
                    1 => TEXT + next() % 0x400,
                    _ => STACK + (next() >> 40) % 2400,
                })
                .collect();
            let mut memory = Memory {
                base: STACK,
                words,
                reads: 0,
            };
            let words = (0..64)
                .map(|_| (next() >> 20) as u32 & 0xc0ff_ffff)
                .collect();
            let mut tables = HostTables {
                words,
                wide: Vec::new(),
            };
            let process = ProcessTable {
                mappings: 0,
                count: next() as u32 % 8,
            };
            let registers = Registers {
                ip: TEXT + next() % 0x400,
                sp: STACK,
                fp: STACK,
            };
            // A signal rule may go down the stack: only the number of frames bounds that.
            tables.words.iter_mut().for_each(|word| {
                if row_rule(*word) == Rule::SIGNAL {
                    *word = 0;
                }
            });
            let (ips, _) = walk(registers, &mut memory, &tables, process);
            assert!(ips.len() <= 300);
        }
    }
}
