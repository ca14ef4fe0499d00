//! Rows for Go code, from the table of stack depths that the runtime itself unwinds with
//! ([`crate::process::pclntab`]). It is there in stripped binaries too, and exact at every address:
//! the caller of a function without a frame is not lost, as it is when frame pointers are followed.
//!
//! What this does not do: code of other languages in the same binary. It has `.eh_frame`;
//! [`merge`] puts the two together.

mod amd64;
mod arm64;
mod frames;
mod landmarks;

use std::ops::Range;

use object::{LittleEndian, ReadRef, elf::FileHeader64, read::elf::FileHeader};
use rustc_hash::FxHashMap;

use super::{Arch, Rows, TableRule};
use crate::process::pclntab;
use hotspan_abi::unwind::{Rule, WideRule};
use landmarks::Landmarks;

/// Rows end here, and the rest of the binary has none: far more than the largest binaries need.
const MAX_ROWS: usize = 4 << 20;
/// Functions are aligned, and what lies between them is never executed. Rules go on over gaps up to
/// this, which saves a row a function.
const MAX_PADDING_BYTES: u64 = 64;

/// The rows of the Go code in an ELF file, by ELF address; `None` when it holds none, or is for
/// another processor.
#[must_use]
pub fn rows<'a, R: ReadRef<'a> + 'a>(file: R) -> Option<Rows> {
    let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
    let machine = match Arch::of_machine(header.e_machine(LittleEndian))? {
        Arch::X86_64 => &amd64::AMD64,
        Arch::Aarch64 => &arm64::ARM64,
    };
    let table = pclntab::find(file)?;
    let mut rows = Builder::default();
    let landmarks = Landmarks::find(machine, &table);
    for function in table.functions() {
        if rows.rows.len() > MAX_ROWS {
            break;
        }
        frames::add(machine, &landmarks, &function, &mut rows);
    }
    Some(rows.finish())
}

/// One table of two: Go's rules, and where Go has none, the others.
#[must_use]
pub fn merge(go: &Rows, other: &Rows) -> Rows {
    let mut builder = Builder::default();
    let (mut go_rules, mut other_rules) = (Cursor::new(go), Cursor::new(other));
    while let Some(addr) = go_rules.next_addr(&other_rules) {
        go_rules.advance_to(addr);
        other_rules.advance_to(addr);
        let rule = match go_rules.rule() {
            AnyRule::Short(Rule::NONE) => other_rules.rule(),
            rule => rule,
        };
        builder.push(addr, rule);
    }
    builder.into_rows()
}

/// Goes through rows by address.
struct Cursor<'a> {
    rows: &'a Rows,
    next: usize,
}

impl<'a> Cursor<'a> {
    fn new(rows: &'a Rows) -> Self {
        Self { rows, next: 0 }
    }

    /// Where either has its next row.
    fn next_addr(&self, other: &Self) -> Option<u64> {
        let addr = |cursor: &Self| cursor.rows.rows.get(cursor.next).map(|(addr, _)| *addr);
        addr(self).into_iter().chain(addr(other)).min()
    }

    fn advance_to(&mut self, addr: u64) {
        while self
            .rows
            .rows
            .get(self.next)
            .is_some_and(|(at, _)| *at <= addr)
        {
            self.next += 1;
        }
    }

    /// The rule of the last row that was passed.
    fn rule(&self) -> AnyRule {
        let last = self
            .next
            .checked_sub(1)
            .and_then(|last| self.rows.rows.get(last));
        match last {
            Some((_, TableRule::Short(rule))) => AnyRule::Short(*rule),
            Some((_, TableRule::Wide(at))) => self
                .rows
                .wide
                .get(*at as usize)
                .map_or(AnyRule::Short(Rule::NONE), |wide| AnyRule::Wide(*wide)),
            None => AnyRule::Short(Rule::NONE),
        }
    }
}

/// A rule that is in no table yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnyRule {
    Short(Rule),
    Wide(WideRule),
}

impl From<Rule> for AnyRule {
    fn from(rule: Rule) -> Self {
        Self::Short(rule)
    }
}

/// Collects rows by ascending address.
#[derive(Default)]
struct Builder {
    rows: Vec<(u64, TableRule)>,
    wide: Vec<WideRule>,
    wide_at: FxHashMap<WideRule, u32>,
    /// Where the last rule ends.
    end: u64,
}

impl Builder {
    /// A rule for addresses behind all that were added, up to their last byte.
    fn add(&mut self, range: Range<u64>, rule: AnyRule) {
        if range.start >= range.end {
            return;
        }
        if !self.rows.is_empty() && range.start.saturating_sub(self.end) > MAX_PADDING_BYTES {
            self.push(self.end, Rule::NONE.into());
        }
        self.push(range.start, rule);
        self.end = range.end;
    }

    /// A rule from an address on. One that begins where the last one does takes its place.
    fn push(&mut self, addr: u64, rule: AnyRule) {
        let rule = match rule {
            AnyRule::Short(rule) => TableRule::Short(rule),
            AnyRule::Wide(rule) => self.wide(rule),
        };
        while self.rows.last().is_some_and(|(last, _)| *last >= addr) {
            self.rows.pop();
        }
        if self.rows.last().is_none_or(|(_, last)| *last != rule) {
            self.rows.push((addr, rule));
        }
    }

    fn wide(&mut self, rule: WideRule) -> TableRule {
        let wide = &mut self.wide;
        TableRule::Wide(*self.wide_at.entry(rule).or_insert_with(|| {
            wide.push(rule);
            wide.len() as u32 - 1
        }))
    }

    /// The rows, and none behind the last that was added.
    fn finish(mut self) -> Rows {
        if !self.rows.is_empty() {
            self.push(self.end, Rule::NONE.into());
        }
        self.into_rows()
    }

    fn into_rows(self) -> Rows {
        Rows {
            rows: self.rows,
            wide: self.wide,
        }
    }
}

#[cfg(test)]
mod tests {
    use hotspan_abi::unwind::{BASE_BY_CALLER, FP_AT_CFA};

    use super::*;
    use crate::process::pclntab::fixture::{Spec, TEXT, binary};

    /// `push rbp; mov rbp, rsp; sub rsp, 16; ...; add rsp, 16; pop rbp; ret`
    const FRAME: &[u8] = &[
        0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0x90, 0x48, 0x83, 0xc4, 0x10, 0x5d, 0xc3,
    ];
    const FRAME_DEPTHS: &[(u8, i32)] = &[(1, 0), (7, 8), (5, 24), (1, 8), (1, 0)];

    /// `sub rsp, 24; mov [rsp+16], rbp; lea rbp, [rsp+16]; mov rbp, [rsp+16]; add rsp, 24; ret`
    const OLD_FRAME: &[u8] = &[
        0x48, 0x83, 0xec, 0x18, 0x48, 0x89, 0x6c, 0x24, 0x10, 0x48, 0x8d, 0x6c, 0x24, 0x10, 0x48,
        0x8b, 0x6c, 0x24, 0x10, 0x48, 0x83, 0xc4, 0x18, 0xc3,
    ];

    fn sp(cfa: i64, fp: i64) -> TableRule {
        TableRule::Short(Rule::from_register(Rule::FROM_SP, cfa, fp).unwrap())
    }

    const ROOT: TableRule = TableRule::Short(Rule::ROOT);
    const FOLLOW: TableRule = TableRule::Short(Rule::SWITCH);

    fn check(functions: &[Spec<'_>], expected: &[(u64, TableRule)]) {
        let found = rows(&binary(functions)[..]).unwrap();
        let found: Vec<_> = found
            .rows
            .iter()
            .map(|(addr, rule)| (addr.wrapping_sub(TEXT), *rule))
            .collect();
        assert_eq!(found, expected);
    }

    fn function<'a>(name: &'a str, code: &'a [u8], depths: &'a [(u8, i32)]) -> Spec<'a> {
        Spec {
            name,
            code,
            depths,
            ..Spec::default()
        }
    }

    #[test]
    fn a_function_without_a_frame_keeps_its_caller() {
        let leaf = function("main.leaf", &[0x90; 16], &[(16, 0)]);
        check(&[leaf], &[(0, sp(8, 0)), (16, TableRule::NONE)]);
    }

    #[test]
    fn a_pushed_frame_pointer_is_below_the_return_address() {
        check(
            &[function("main.f", FRAME, FRAME_DEPTHS)],
            &[
                (0, sp(8, 0)),
                (1, sp(16, 16)),
                (8, sp(32, 16)),
                (13, sp(16, 16)),
                (14, sp(8, 0)),
                (15, TableRule::NONE),
            ],
        );
    }

    #[test]
    fn a_stored_frame_pointer_counts_from_behind_its_store() {
        check(
            &[function("main.f", OLD_FRAME, &[(4, 0), (19, 24), (1, 0)])],
            &[
                (0, sp(8, 0)),
                (4, sp(32, 0)),
                (9, sp(32, 16)),
                (23, sp(8, 0)),
                (24, TableRule::NONE),
            ],
        );
    }

    #[test]
    fn push_of_r13_saves_no_frame_pointer() {
        let push = function(
            "f",
            &[0x41, 0x55, 0x41, 0x5d, 0xc3],
            &[(2, 0), (2, 8), (1, 0)],
        );
        check(
            &[push],
            &[
                (0, sp(8, 0)),
                (2, sp(16, 0)),
                (4, sp(8, 0)),
                (5, TableRule::NONE),
            ],
        );
    }

    #[test]
    fn a_frame_too_large_for_a_short_rule_gets_a_wide_one() {
        let large = function("main.f", FRAME, &[(1, 0), (7, 8), (7, 1 << 20)]);
        let found = rows(&binary(&[large])[..]).unwrap();
        assert_eq!(found.rows[2], (TEXT + 8, TableRule::Wide(0)));
        let wide = found.wide[0];
        assert_eq!((wide.cfa_offset, wide.fp_offset), ((1 << 20) + 8, -16));
    }

    #[test]
    fn stacks_end_where_go_says() {
        let top = Spec {
            flags: 1,
            ..function("main.top", &[0x90; 16], &[(16, 0)])
        };
        let goexit = function("runtime.goexit", &[0x90; 16], &[(16, 0)]);
        check(&[top, goexit], &[(0, ROOT), (32, TableRule::NONE)]);
    }

    #[test]
    fn a_signal_trampoline_begins_a_byte_early() {
        let leaf = function("main.leaf", &[0x90; 16], &[(16, 0)]);
        let signal = function("runtime.sigreturn__sigaction", &[0x90; 16], &[(16, 0)]);
        let rule = TableRule::Short(Rule::SIGNAL);
        check(
            &[leaf, signal],
            &[(0, sp(8, 0)), (15, rule), (32, TableRule::NONE)],
        );
    }

    #[test]
    fn a_stack_switch_follows_the_frame_pointer_until_it_is_back() {
        // push rbp; mov rbp, rsp; mov rsp, [rdx+56]; nop; mov rsp, [rax+56]; pop rbp; ret
        let code = [
            0x55, 0x48, 0x89, 0xe5, 0x48, 0x8b, 0x62, 0x38, 0x90, 0x48, 0x8b, 0x60, 0x38, 0x5d,
            0xc3,
        ];
        let depths = [(1, 0), (13, 8), (1, 0)];
        check(
            &[function("runtime.systemstack", &code, &depths)],
            &[
                (0, sp(8, 0)),
                (1, sp(16, 16)),
                (8, FOLLOW),
                (13, sp(16, 16)),
                (14, sp(8, 0)),
                (15, TableRule::NONE),
            ],
        );
    }

    /// The rows of `mcall` and of these functions behind it.
    fn with_mcall(others: &[Spec<'_>]) -> Rows {
        // mov rsp, [r14+56]; push rax; nop
        let code = [0x49, 0x8b, 0x66, 0x38, 0x50, 0x90];
        let mcall = function("runtime.mcall", &code, &[(5, 0), (1, 8)]);
        rows(&binary(&[&[mcall], others].concat())[..]).unwrap()
    }

    /// The rules once `mcall` has switched, and once it has pushed as well, with these functions behind it.
    fn of_scheduler(others: &[Spec<'_>]) -> Vec<WideRule> {
        let found = with_mcall(others);
        let wide = [(4, TableRule::Wide(0)), (5, TableRule::Wide(1))];
        let expected = [&[(0, sp(8, 0))], &wide[..]].concat();
        let at = found.rows.iter().map(|(at, rule)| (at - TEXT, *rule));
        assert_eq!(at.take(3).collect::<Vec<_>>(), expected);
        found.wide
    }

    #[test]
    fn a_stack_that_grows_is_left_for_that_of_the_thread_once_the_frame_pointer_is_gone() {
        // mov rsp, [rbx+56], then mov rbp, 0, mov rbp, [rbx+96], or neither.
        let switch = [0x48, 0x8b, 0x63, 0x38];
        let replaced = TableRule::Wide(0);
        let mstart0 = function("runtime.mstart0", FRAME, FRAME_DEPTHS);
        for (next, expected) in [
            ([0x48, 0xc7, 0xc5, 0, 0, 0, 0], replaced),
            ([0x48, 0x8b, 0x6b, 0x60, 0x90, 0x90, 0x90], replaced),
            ([0xe8, 1, 1, 1, 1, 0x90, 0x90], FOLLOW),
        ] {
            let code = [&switch[..], &next].concat();
            let morestack = function("runtime.morestack", &code, &[(11, 0)]);
            let found = rows(&binary(&[morestack, mstart0.clone()])[..]).unwrap();
            assert_eq!(found.rows[1], (TEXT + 4, expected));
        }
    }

    #[test]
    fn the_scheduler_runs_on_the_stack_that_mstart0_left() {
        let mstart0 = function("runtime.mstart0", FRAME, FRAME_DEPTHS);
        let rule = |cfa_offset| WideRule {
            cfa_offset,
            ra_offset: -8,
            ..WideRule::default()
        };
        assert_eq!(of_scheduler(&[mstart0]), [rule(32), rule(40)]);
    }

    #[test]
    fn the_scheduler_runs_on_the_stack_that_cgocallback_left_when_c_has_called() {
        let mstart0 = function("runtime.mstart0", FRAME, FRAME_DEPTHS);
        // Jumps there.
        let wrapper = function(
            "runtime.mstart0",
            &[0xe9, 0xec, 0xff, 0xff, 0xff],
            &[(5, 0)],
        );
        let nothing = function("main.nothing", &[0x90; 5], &[(5, 0)]);
        // call wrapper; ret, and call mstart0; ret
        let by_10 = [0xe8, 0xf6, 0xff, 0xff, 0xff, 0xc3];
        let by_25 = [0xe8, 0xe7, 0xff, 0xff, 0xff, 0xc3];
        let depths = [(1, 0), (7, 8), (5, 40), (1, 8), (1, 0)];
        let cgocallback = function("runtime.cgocallback", FRAME, &depths);
        for (between, mstart) in [(wrapper, by_10), (nothing, by_25)] {
            let mstart = function("runtime.mstart", &mstart, &[(6, 0)]);
            let rule = |cfa_offset| WideRule {
                cfa_base: BASE_BY_CALLER,
                cfa_offset,
                cfa_is_read: (TEXT + 31) as u32 & 0xfff,
                cfa_addend: 16,
                fp_rule: FP_AT_CFA,
                fp_offset: -16,
                ra_offset: -8,
                ..WideRule::default()
            };
            let others = [mstart0.clone(), between, mstart, cgocallback.clone()];
            assert_eq!(of_scheduler(&others), [rule(32), rule(40)]);
        }
    }

    #[test]
    fn the_scheduler_begins_at_mcall_when_nothing_tells_what_is_below() {
        let cgocallback = function("runtime.cgocallback", FRAME, FRAME_DEPTHS);
        let mstart0 = function("runtime.mstart0", FRAME, FRAME_DEPTHS);
        for others in [&[][..], &[mstart0, cgocallback]] {
            assert_eq!(with_mcall(others).rows[1], (TEXT + 4, ROOT));
        }
    }

    #[test]
    fn other_rows_hold_where_go_has_none() {
        let short = |addr, rule| (addr, TableRule::Short(rule));
        let go = Rows {
            rows: vec![(100, sp(8, 0)), (200, TableRule::NONE)],
            wide: Vec::new(),
        };
        let wide = WideRule {
            cfa_offset: 5,
            ..WideRule::default()
        };
        let other = Rows {
            rows: vec![
                (50, sp(16, 0)),
                (150, TableRule::Wide(0)),
                short(300, Rule::NONE),
            ],
            wide: vec![wide],
        };
        let expected = Rows {
            rows: vec![
                (50, sp(16, 0)),
                (100, sp(8, 0)),
                (200, TableRule::Wide(0)),
                (300, TableRule::NONE),
            ],
            wide: vec![wide],
        };
        assert_eq!(merge(&go, &other), expected);
    }

    #[test]
    fn changed_files_give_rows_in_order() {
        let functions = [
            function("runtime.morestack", FRAME, FRAME_DEPTHS),
            function("runtime.mstart0", OLD_FRAME, &[(4, 0), (19, 24), (1, 0)]),
        ];
        let original = binary(&functions);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..3000 {
            let mut file = original.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(0x1000..file.len());
                file[at] = random.u8(..);
            }
            let found = rows(&file[..]).unwrap_or_default().rows;
            let is_sound =
                |pair: &[(u64, TableRule)]| pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1;
            assert!(found.windows(2).all(is_sound), "{found:?}");
        }
    }
}
