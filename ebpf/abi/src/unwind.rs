//! Unwind tables: how they are laid out in memory that the agent writes and the programs read.
//!
//! All tables live in one space of 32-bit words, made of segments of [`SEGMENT_WORDS`] that exist
//! as they are needed. What is searched together lies in one segment: the rows and pages of a table,
//! and the mappings of a process. Three things lie there:
//!
//! - **Rows** of a binary, by address. A row says how to unwind from its address up to the next
//!   row's: eight bits of address, the low byte, and a [`Rule`] of 24 bits.
//! - **Pages** of a binary: for each [`PAGE_BYTES`] of text the index of the first row at or behind
//!   the page's start, and one more for the end. The row for an address is the last one at or below
//!   it in its page, or else the row before the page's first. So the first row of a binary is for
//!   everything before its first function.
//! - **Mappings** of a process: [`Mapping`]s by address, those without a table too.
//!
//! A rule that does not fit in 24 bits is the index of a [`WideRule`] in a table of its own.

/// Bytes of text that one word of the page index stands for.
pub const PAGE_BYTES: u64 = 256;

/// Words in a segment: 1 MiB. A power of two: indexes are split with a shift and a mask.
pub const SEGMENT_WORDS: usize = 1 << 18;
const _: () = assert!(SEGMENT_WORDS.is_power_of_two());

/// Words of one table at most; a binary with more has several. A part of a segment, so that the ends of
/// segments are not wasted.
pub const MAX_TABLE_WORDS: usize = SEGMENT_WORDS / 4;

/// Segments that there can be at most: 256 MiB of tables.
pub const MAX_SEGMENTS: usize = 256;

/// Wide rules that there can be at most.
pub const MAX_WIDE_RULES: usize = 4096;
const _: () = assert!(MAX_WIDE_RULES.is_power_of_two());

/// Processes whose mappings can be known at once.
pub const MAX_PROCESSES: usize = 16384;

/// Mappings of one process. A power of two: the search halves.
pub const MAX_MAPPINGS: usize = 4096;
const _: () = assert!(MAX_MAPPINGS.is_power_of_two());
const _: () = assert!(MAX_MAPPINGS * MAPPING_WORDS as usize <= SEGMENT_WORDS);

/// Steps of the search in one page: no page has more than 256 rows, one for each byte.
pub const ROW_SEARCH_STEPS: u64 = 9;

/// An unwind rule of 24 bits.
///
/// | bits | meaning |
/// |---|---|
/// | 23–22 | kind: [`Rule::FROM_SP`], [`Rule::FROM_FP`], [`Rule::WIDE`], [`Rule::SPECIAL`] |
/// | 21–11 | for the first two and [`Rule::link`]: distance of the canonical frame address (CFA) above the register, in words |
/// | 10–0 | for the first two: distance of the saved frame pointer below the CFA, in words; 0: it is still in its register |
/// | 21–0 | for a wide rule: its index |
/// | 10–0 | for a special rule: which one |
///
/// The caller's stack pointer is the CFA. Where the return address lies depends on the processor:
///
/// | | the frame pointer was saved | it was not |
/// |---|---|---|
/// | x86-64 | in the word below the CFA | likewise |
/// | arm64 | in the word above the saved frame pointer | where the register points that the CFA is above |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule(pub u32);

impl Rule {
    /// The CFA is above the stack pointer.
    pub const FROM_SP: u32 = 0;
    /// The CFA is above the frame pointer.
    pub const FROM_FP: u32 = 1;
    /// A [`WideRule`].
    pub const WIDE: u32 = 2;
    /// One of the rules below.
    pub const SPECIAL: u32 = 3;

    /// No rule is known here.
    pub const NONE: Self = Self(Self::SPECIAL << 22);
    /// The thread's first function: there is no caller.
    pub const ROOT: Self = Self(Self::SPECIAL << 22 | 1);
    /// A procedure linkage table of 16-byte entries: the CFA is 8 above the stack pointer, and 8
    /// more from the eleventh byte of an entry on.
    pub const PLT: Self = Self(Self::SPECIAL << 22 | 2);
    /// A signal trampoline: the interrupted registers lie on the stack (`struct rt_sigframe`).
    pub const SIGNAL: Self = Self(Self::SPECIAL << 22 | 3);
    /// Follow the frame pointer: code without tables that keeps it.
    pub const FRAME_POINTER: Self = Self(Self::SPECIAL << 22 | 4);
    /// Follow the frame pointer to another stack, which may lie anywhere: the function that switched
    /// to this one keeps its own frame there.
    pub const SWITCH: Self = Self(Self::SPECIAL << 22 | 5);

    /// Code made at run time that the agent has not looked at yet: a guess by the frame pointer, and the
    /// stack is sent along.
    pub const UNSEEN: Self = Self(Self::SPECIAL << 22 | 7);

    /// Behind a system call that starts a thread, which its parent goes on from too: without a caller
    /// where the call returned 0, else a function that has just been called.
    pub const NEW_THREAD: Self = Self(Self::SPECIAL << 22 | 8);

    const LINK: u32 = Self::SPECIAL << 22 | 6;
    const MAX_WORDS: u32 = (1 << 11) - 1;

    /// A rule by the stack pointer or the frame pointer, when it fits: `cfa` bytes above the
    /// register, the frame pointer saved `fp` bytes below the CFA, 0 if it was not saved.
    #[must_use]
    pub const fn from_register(kind: u32, cfa: i64, fp: i64) -> Option<Self> {
        if cfa < 0 || fp < 0 || cfa % 8 != 0 || fp % 8 != 0 {
            return None;
        }
        let (cfa, fp) = (cfa / 8, fp / 8);
        if cfa > Self::MAX_WORDS as i64 || fp > Self::MAX_WORDS as i64 {
            return None;
        }
        Some(Self(kind << 22 | (cfa as u32) << 11 | fp as u32))
    }

    /// The return address is in the link register, and the CFA so many bytes above the stack pointer;
    /// the frame pointer is unchanged. For exact addresses alone: a call changes that register.
    #[must_use]
    pub const fn link(cfa: i64) -> Option<Self> {
        match Self::from_register(Self::SPECIAL, cfa, 0) {
            Some(words) => Some(Self(words.0 | Self::LINK)),
            None => None,
        }
    }

    /// Whether this is a [`Rule::link`].
    #[inline(always)]
    #[must_use]
    pub const fn is_link(self) -> bool {
        self.0 & !(Self::MAX_WORDS << 11) == Self::LINK
    }

    /// The wide rule with this index.
    #[must_use]
    pub const fn wide(index: u32) -> Option<Self> {
        if index as usize >= MAX_WIDE_RULES {
            return None;
        }
        Some(Self(Self::WIDE << 22 | index))
    }

    /// The kind: one of the four.
    #[inline(always)]
    #[must_use]
    pub const fn kind(self) -> u32 {
        self.0 >> 22 & 3
    }

    /// Whether the CFA is above the stack pointer or the frame pointer: the rules of nearly all code.
    #[inline(always)]
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.kind() <= Self::FROM_FP
    }

    /// Bytes of the CFA above its register.
    #[inline(always)]
    #[must_use]
    pub const fn cfa_bytes(self) -> u64 {
        ((self.0 >> 11 & Self::MAX_WORDS) * 8) as u64
    }

    /// Bytes of the saved frame pointer below the CFA, 0 if it was not saved.
    #[inline(always)]
    #[must_use]
    pub const fn fp_bytes(self) -> u64 {
        ((self.0 & Self::MAX_WORDS) * 8) as u64
    }

    /// Index of a wide rule.
    #[inline(always)]
    #[must_use]
    pub const fn wide_index(self) -> u32 {
        self.0 & (MAX_WIDE_RULES as u32 - 1)
    }
}

/// A row: the low byte of its address above its rule.
#[inline(always)]
#[must_use]
pub const fn row(addr: u64, rule: Rule) -> u32 {
    (addr as u32) << 24 | rule.0
}

/// The low byte of a row's address.
#[inline(always)]
#[must_use]
pub const fn row_addr(row: u32) -> u32 {
    row >> 24
}

/// A row's rule.
#[inline(always)]
#[must_use]
pub const fn row_rule(row: u32) -> Rule {
    Rule(row & 0x00ff_ffff)
}

/// Which register an address is relative to.
pub const BASE_SP: u32 = 0;
/// See [`BASE_SP`].
pub const BASE_FP: u32 = 1;
/// The register that code addresses its frame by when it has aligned the stack pointer and leaves the
/// frame pointer alone; known for exact addresses alone. See [`BASE_SP`].
pub const BASE_ALIGNED: u32 = 2;
/// The first of the registers that compilers know a frame by while they make it, before they align the stack pointer
/// or touch each page of a large frame; known for exact addresses alone. See [`BASE_SP`].
pub const BASE_FIRST_SCRATCH: u32 = 3;
/// The second of them. See [`BASE_FIRST_SCRATCH`].
pub const BASE_SECOND_SCRATCH: u32 = 4;
/// The stack pointer, where one of two frames ends. One has the CFA at `cfa_offset` and its return
/// address at `ra_offset` from that; it is there if that address has `cfa_is_read` as its
/// [`place_in_page`]. Else the CFA is `cfa_addend` further up, and a frame record (frame pointer, then return
/// address) lies at `fp_offset` from that. See [`BASE_SP`].
pub const BASE_BY_CALLER: u32 = 5;
/// The frame pointer, which leads to another stack, wherever that lies. See [`BASE_SP`].
pub const BASE_OTHER_STACK: u32 = 6;

/// What an address has in common wherever its file is mapped.
#[inline(always)]
#[must_use]
pub const fn place_in_page(addr: u64) -> u32 {
    addr as u32 & 0xfff
}

/// The caller's frame pointer is unchanged.
pub const FP_SAME: u32 = 0;
/// The caller's frame pointer is at CFA + offset.
pub const FP_AT_CFA: u32 = 1;
/// The caller's frame pointer is at the frame pointer + offset.
pub const FP_AT_FP: u32 = 2;

/// The return address is at CFA + offset.
pub const RA_AT_CFA: u32 = 0;
/// The return address is in the link register, see [`Rule::link`].
pub const RA_IN_LINK: u32 = 1;
/// The return address is at the frame pointer + offset.
pub const RA_AT_FP: u32 = 2;

/// A rule with all that does not fit in 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct WideRule {
    /// [`BASE_SP`] or one of those that follow it.
    pub cfa_base: u32,
    /// CFA = base + this, or, when it is read from memory, what lies at base + this.
    pub cfa_offset: i32,
    /// 1 when the CFA is read from memory.
    pub cfa_is_read: u32,
    /// Added to a CFA that was read from memory.
    pub cfa_addend: i32,
    /// [`FP_SAME`], [`FP_AT_CFA`] or [`FP_AT_FP`].
    pub fp_rule: u32,
    /// Offset of the saved frame pointer.
    pub fp_offset: i32,
    /// [`RA_AT_CFA`], [`RA_IN_LINK`] or [`RA_AT_FP`].
    pub ra_rule: u32,
    /// Offset of the return address.
    pub ra_offset: i32,
}
const _: () = assert!(size_of::<WideRule>() == 4 * WIDE_RULE_WORDS);

/// Words of a [`WideRule`].
pub const WIDE_RULE_WORDS: usize = 8;

impl WideRule {
    /// The words.
    #[must_use]
    pub const fn to_words(&self) -> [u32; WIDE_RULE_WORDS] {
        [
            self.cfa_base,
            self.cfa_offset as u32,
            self.cfa_is_read,
            self.cfa_addend as u32,
            self.fp_rule,
            self.fp_offset as u32,
            self.ra_rule,
            self.ra_offset as u32,
        ]
    }

    /// From its words.
    #[must_use]
    pub const fn from_words(words: [u32; WIDE_RULE_WORDS]) -> Self {
        let [
            cfa_base,
            cfa_offset,
            cfa_is_read,
            cfa_addend,
            fp_rule,
            fp_offset,
            ra_rule,
            ra_offset,
        ] = words;
        Self {
            cfa_base,
            cfa_offset: cfa_offset as i32,
            cfa_is_read,
            cfa_addend: cfa_addend as i32,
            fp_rule,
            fp_offset: fp_offset as i32,
            ra_rule,
            ra_offset: ra_offset as i32,
        }
    }
}

/// Words of a [`Mapping`].
pub const MAPPING_WORDS: u32 = 8;

/// A part of an executable mapping, as eight words: 64-bit fields low word first. Parts without a table
/// are unwound by the frame pointer. Code in no part has a table that is still being made, or was mapped
/// a moment ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mapping {
    /// First address in the process.
    pub start: u64,
    /// One past the last address in the process.
    pub end: u64,
    /// Address in the process of the first page of the page index.
    pub pages_start: u64,
    /// Index of the first word of the page index.
    pub pages: u32,
    /// How many pages there are; one word more belongs to the index. 0 for a part without a table.
    pub page_count: u32,
}

impl Mapping {
    /// Whether an address lies in it.
    #[inline(always)]
    #[must_use]
    pub const fn holds(&self, addr: u64) -> bool {
        self.start <= addr && addr < self.end
    }

    /// The words.
    #[must_use]
    pub const fn to_words(self) -> [u32; MAPPING_WORDS as usize] {
        [
            self.start as u32,
            (self.start >> 32) as u32,
            self.end as u32,
            (self.end >> 32) as u32,
            self.pages_start as u32,
            (self.pages_start >> 32) as u32,
            self.pages,
            self.page_count,
        ]
    }
}

/// What the programs know of a process: where its mappings are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessTable {
    /// Index of the first word of its mappings.
    pub mappings: u32,
    /// How many there are.
    pub count: u16,
    /// 1 when some of its tables are for code that it makes, and may be for code that is there no more.
    pub is_changing: u16,
}
const _: () = assert!(MAX_MAPPINGS <= u16::MAX as usize);
const _: () = assert!(size_of::<ProcessTable>() == 8);

impl ProcessTable {
    /// The words.
    #[must_use]
    pub const fn to_words(self) -> [u32; 2] {
        [
            self.mappings,
            self.count as u32 | (self.is_changing as u32) << 16,
        ]
    }
}
