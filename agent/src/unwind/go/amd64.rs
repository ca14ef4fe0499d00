//! How Go's frames look on x86-64.
//!
//! The depth table says where the return address is, at every instruction. Where the caller's
//! frame pointer is, the code says: since Go 1.21 a function with a frame begins with
//! `push rbp; mov rbp, rsp; sub rsp, N`, before that with `sub rsp, N; mov [rsp+N-8], rbp;
//! lea rbp, [rsp+N-8]` (`preprocess` in `cmd/internal/obj/x86/obj6.go`). Go itself does not need it
//! where depths are known; C code up the stack, and the switches between stacks, do.
//!
//! # Functions that switch stacks
//!
//! | function | before it switches | after |
//! |---|---|---|
//! | `systemstack`, `asmcgocall`, `cgocallback`, `nanotime1`, ... with a frame of their own | depth | their frame pointer, which leads back to the stack they came from |
//! | `asmcgocall` until Go 1.20, without a frame | depth | the frame pointer is that of `cgocall`, and the depth of that is known |
//! | `systemstack` until Go 1.20, without a frame | depth | frame pointer of the caller: the caller itself is lost, all above is kept |
//! | `mcall` | depth | `mstart`, the first function of the thread: what runs is the scheduler, for no goroutine |
//! | `morestack` from Go 1.25 | depth | `mstart` too: the frame pointer is cleared, and the goroutine whose stack grows is known in memory of the runtime alone |
//! | `morestack` until Go 1.24 | depth | frame pointer of the caller's caller |
//! | `gogo` | depth | frame pointer, which it restores for the goroutine it continues |
//! | `clone` | depth | root of a new thread |
//! | `rawVforkSyscall` | depth, but the frame pointer of the caller while the return address is in a register | |
//! | `switchToCrashStack0` | depth | nothing: the program ends in a moment |
//!
//! The system stack of a thread begins with `mstart`, which calls `mstart0`, which calls `mstart1`;
//! that remembers `mstart0`'s stack pointer for all who switch there (`g.sched.sp`). So the
//! functions that switch run as if `mstart0` had called them. That does not hold for a thread that
//! C code made, while it is in a callback: there the scheduler's stack ends at a wrong frame.
//!
//! `sigtramp` is marked as the first function of its stack, but has a signal frame above it like
//! any handler.

use std::{cell::OnceCell, ops::Range};

use hotspan_abi::unwind::{BASE_FP, BASE_SP, FP_AT_CFA, FP_SAME, RA_AT_CFA, Rule, WideRule};

use super::{AnyRule, Builder};
use crate::process::pclntab::{Function, PcValue, Pclntab};

/// Bytes of a stack segment's code that are searched for the instruction that saves the frame
/// pointer: assembly saves others before it.
const SAVE_SEARCH_BYTES: usize = 96;
/// Functions that switch stacks are short; of longer ones only the start is searched.
const SWITCH_SEARCH_BYTES: usize = 4096;
/// Writes of the stack pointer in one function that are looked at.
const MAX_WRITES: usize = 16;

/// Longer names are none of those that are special.
const MAX_NAME_BYTES: usize = 48;
/// Changes of depth in one function; the rest of a function with more has no rows.
const MAX_DEPTHS: usize = 1 << 20;

/// Depths of functions that rules of others build on, looked up when they are first needed: the
/// second only by Go until 1.20.
pub(super) struct Landmarks<'a> {
    table: &'a Pclntab<'a>,
    mstart0: OnceCell<Option<i32>>,
    cgocall: OnceCell<Option<i32>>,
}

impl<'a> Landmarks<'a> {
    pub(super) fn new(table: &'a Pclntab<'a>) -> Self {
        Self {
            table,
            mstart0: OnceCell::new(),
            cgocall: OnceCell::new(),
        }
    }

    fn mstart0(&self) -> Option<i32> {
        *self
            .mstart0
            .get_or_init(|| self.depth_of(b"runtime.mstart0"))
    }

    fn cgocall(&self) -> Option<i32> {
        *self
            .cgocall
            .get_or_init(|| self.depth_of(b"runtime.cgocall"))
    }

    /// How deep a function's stack is where it calls others.
    fn depth_of(&self, name: &[u8]) -> Option<i32> {
        let mut functions = self.table.functions();
        let function = functions.find(|function| function.name_below(MAX_NAME_BYTES) == name)?;
        function.depths().map(|value| value.value).max()
    }
}

/// Where a function saves the caller's frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Save {
    /// First address at which it is saved.
    from: u64,
    /// Bytes below the canonical frame address.
    below: i64,
}

/// What holds where a function is on another stack.
#[derive(Clone, Copy)]
enum Switched {
    Rule(AnyRule),
    /// The stack of the thread, as `mstart0` left it.
    ThreadStack {
        /// Depth of the function's own frame when it switched.
        depth: i64,
        /// Depth of `mstart0`'s frame.
        mstart0: i64,
    },
}

impl Switched {
    const FOLLOW: Self = Self::Rule(AnyRule::Short(Rule::SWITCH));

    fn rule(self, depth: i64) -> AnyRule {
        match self {
            Self::Rule(rule) => rule,
            Self::ThreadStack {
                depth: start,
                mstart0,
            } => from_stack_pointer(mstart0 + depth - start, 0),
        }
    }
}

/// Parts of a function where a rule holds other than that of the depth.
#[derive(Default)]
struct Switch {
    /// The other rules, by ascending address.
    parts: Vec<(Range<u64>, Switched)>,
    /// Only where the stack is this deep.
    depth: Option<i64>,
}

/// Adds a function's rows.
pub(super) fn add(landmarks: &Landmarks<'_>, function: &Function<'_>, rows: &mut Builder) {
    let name = function.name_below(MAX_NAME_BYTES);
    let name = name.strip_suffix(b".abi0").unwrap_or(name);
    if name.starts_with(b"runtime.sigreturn") {
        // The kernel makes the handler return to its first byte, and a return address is looked up
        // one byte before.
        rows.add(function.entry - 1..function.end, Rule::SIGNAL.into());
        return;
    }
    if is_root(name, function) {
        rows.add(function.entry..function.end, Rule::ROOT.into());
        return;
    }
    let values: Vec<PcValue> = function.depths().take(MAX_DEPTHS).collect();
    let code = function.code();
    let save = find_save(&values, code, function.entry);
    let switch = if function.writes_stack_pointer() || is_switch(name) {
        find_switch(landmarks, function, name, code, &values, save)
    } else {
        Switch::default()
    };
    for PcValue { range, value } in values {
        add_depth(range, value.into(), save, &switch, rows);
    }
}

fn is_root(name: &[u8], function: &Function<'_>) -> bool {
    match name {
        b"runtime.goexit" | b"runtime.mstart" | b"runtime.rt0_go" | b"_rt0_amd64"
        | b"_rt0_amd64_linux" => true,
        b"runtime.sigtramp" => false,
        _ => function.is_top(),
    }
}

/// Known by name too, since the flag came with Go 1.17.
fn is_switch(name: &[u8]) -> bool {
    matches!(
        name,
        b"runtime.systemstack"
            | b"runtime.asmcgocall"
            | b"runtime.cgocallback"
            | b"runtime.mcall"
            | b"runtime.morestack"
            | b"runtime.gogo"
            | b"runtime.clone"
    )
}

/// Adds the rows for addresses with the same depth.
fn add_depth(
    range: Range<u64>,
    depth: i64,
    save: Option<Save>,
    switch: &Switch,
    rows: &mut Builder,
) {
    let saved_from = match save {
        Some(save) if save.below <= depth + 8 => save.from.clamp(range.start, range.end),
        _ => range.end,
    };
    let below = save.map_or(0, |save| save.below);
    let parts = [
        (range.start..saved_from, from_stack_pointer(depth, 0)),
        (saved_from..range.end, from_stack_pointer(depth, below)),
    ];
    for (mut part, rule) in parts {
        let is_switched = switch.depth.is_none_or(|wanted| wanted == depth);
        for (other, switched) in switch.parts.iter().filter(|_| is_switched) {
            let start = other.start.clamp(part.start, part.end);
            let end = other.end.clamp(part.start, part.end);
            if start < end {
                rows.add(part.start..start, rule);
                rows.add(start..end, switched.rule(depth));
                part.start = end;
            }
        }
        rows.add(part, rule);
    }
}

fn from_stack_pointer(depth: i64, saved_below: i64) -> AnyRule {
    let cfa = depth + 8;
    if depth < 0 {
        // The return address is in a register (`rawVforkSyscall`): the caller is lost, but its
        // frame pointer leads on.
        return Rule::FRAME_POINTER.into();
    }
    if let Some(rule) = Rule::from_register(Rule::FROM_SP, cfa, saved_below) {
        return rule.into();
    }
    AnyRule::Wide(WideRule {
        cfa_base: BASE_SP,
        // Depths have 32 bits; a frame that does not leave room for the return address is none.
        cfa_offset: i32::try_from(cfa).unwrap_or(i32::MAX),
        fp_rule: if saved_below == 0 { FP_SAME } else { FP_AT_CFA },
        fp_offset: i32::try_from(-saved_below).unwrap_or(0),
        ra_rule: RA_AT_CFA,
        ra_offset: -8,
        ..WideRule::default()
    })
}

/// Finds where the caller's frame pointer is saved.
fn find_save(values: &[PcValue], code: &[u8], entry: u64) -> Option<Save> {
    values
        .iter()
        .filter(|value| value.value > 0)
        .find_map(|PcValue { range, value }| {
            let at = usize::try_from(range.start - entry).ok()?;
            let after = code.get(at..)?;
            let is_pushed = *value == 8 && is_push_of_frame_pointer(code.get(..at)?, after);
            if is_pushed {
                return Some(Save {
                    from: range.start,
                    below: 16,
                });
            }
            let len = usize::try_from(range.end - range.start).ok()?;
            find_store(&after[..after.len().min(len)], range.start, (*value).into())
        })
}

/// Whether code ends with `push rbp`. The same byte ends `push r13`, after a prefix that may as well
/// be the end of the instruction before: then only `mov rbp, rsp` behind it tells.
fn is_push_of_frame_pointer(code: &[u8], after: &[u8]) -> bool {
    match code {
        [.., prefix, 0x55] if prefix & 0xf1 == 0x41 => after.starts_with(&[0x48, 0x89, 0xe5]),
        [.., 0x55] => true,
        _ => false,
    }
}

/// Finds `mov [rsp+offset], rbp`.
fn find_store(code: &[u8], start: u64, depth: i64) -> Option<Save> {
    let code = &code[..code.len().min(SAVE_SEARCH_BYTES)];
    (0..code.len()).find_map(|at| {
        let (offset, len) = match code[at..] {
            [0x48, 0x89, 0x2c, 0x24, ..] => (0, 4),
            [0x48, 0x89, 0x6c, 0x24, offset, ..] => (i64::from(offset as i8), 5),
            [0x48, 0x89, 0xac, 0x24, a, b, c, d, ..] => {
                (i64::from(i32::from_le_bytes([a, b, c, d])), 8)
            }
            _ => return None,
        };
        let below = depth + 8 - offset;
        (below % 8 == 0 && (16..=depth + 8).contains(&below)).then_some(Save {
            from: start + at as u64 + len,
            below,
        })
    })
}

/// Finds where a function is on another stack than the one it was called on.
fn find_switch(
    landmarks: &Landmarks<'_>,
    function: &Function<'_>,
    name: &[u8],
    code: &[u8],
    values: &[PcValue],
    save: Option<Save>,
) -> Switch {
    let writes = stack_pointer_writes(code, function.entry);
    let (Some(&first), Some(&last)) = (writes.first(), writes.last()) else {
        return Switch::default();
    };
    let to_end = |rule| vec![(first..function.end, rule)];
    let depth = values.iter().map(|value| value.value.into()).max();
    let has_frame = depth > Some(0) && save.is_some_and(|save| save.below == 16);
    let parts = match name {
        b"runtime.clone" => to_end(Switched::Rule(Rule::ROOT.into())),
        b"runtime.switchToCrashStack0" => to_end(Switched::Rule(Rule::NONE.into())),
        b"runtime.morestack" if !clears_frame_pointer(code, first - function.entry) => {
            to_end(Switched::FOLLOW)
        }
        b"runtime.mcall" | b"runtime.morestack" => to_end(thread_stack(landmarks, first, values)),
        _ if has_frame => {
            // With one write alone it does not come back.
            let end = if writes.len() == 1 {
                function.end
            } else {
                last
            };
            let parts = vec![(first..end, Switched::FOLLOW)];
            return Switch { parts, depth };
        }
        b"runtime.systemstack" => vec![(first..last, Switched::FOLLOW)],
        b"runtime.asmcgocall" => frameless_asmcgocall(landmarks, &writes),
        _ => to_end(Switched::FOLLOW),
    };
    Switch { parts, depth: None }
}

/// Whether `mov rbp, 0` is what comes next, in either of its encodings.
fn clears_frame_pointer(code: &[u8], at: u64) -> bool {
    let rest = usize::try_from(at).ok().and_then(|at| code.get(at..));
    rest.is_some_and(|rest| {
        rest.starts_with(&[0x31, 0xed]) || rest.starts_with(&[0x48, 0xc7, 0xc5, 0, 0, 0, 0])
    })
}

/// Until Go 1.20 this is called on a goroutine's stack by `cgocall` alone, whose frame pointer it
/// leaves in its register: the stack pointer of the call is `cgocall`'s depth below that frame's
/// end. Its second half, for calls that are on the system stack already, has other callers.
fn frameless_asmcgocall(landmarks: &Landmarks<'_>, writes: &[u64]) -> Vec<(Range<u64>, Switched)> {
    let (Some(&first), Some(&last)) = (writes.first(), writes.last()) else {
        return Vec::new();
    };
    // To the system stack, aligned, back; aligned, back.
    let &[_, _, back, aligned, _] = writes else {
        return vec![(first..last, Switched::FOLLOW)];
    };
    let of_cgocall = landmarks.cgocall().map_or(Switched::FOLLOW, |depth| {
        Switched::Rule(AnyRule::Wide(WideRule {
            cfa_base: BASE_FP,
            // The frame pointer is 16 below the end of that frame, the return address 8.
            cfa_offset: 8_i32.saturating_sub(depth),
            fp_rule: FP_SAME,
            ra_rule: RA_AT_CFA,
            ra_offset: -8,
            ..WideRule::default()
        }))
    });
    vec![(first..back, of_cgocall), (aligned..last, Switched::FOLLOW)]
}

/// The stack of the thread that a function is on from an address on, or its end when this Go has no
/// `mstart0`.
fn thread_stack(landmarks: &Landmarks<'_>, from: u64, values: &[PcValue]) -> Switched {
    let depth = values
        .iter()
        .find(|value| value.range.contains(&(from - 1)));
    match (depth, landmarks.mstart0()) {
        (Some(depth), Some(mstart0)) => Switched::ThreadStack {
            depth: depth.value.into(),
            mstart0: mstart0.into(),
        },
        _ => Switched::Rule(Rule::ROOT.into()),
    }
}

/// Addresses behind instructions that write the stack pointer, other than by a constant.
fn stack_pointer_writes(code: &[u8], entry: u64) -> Vec<u64> {
    let code = &code[..code.len().min(SWITCH_SEARCH_BYTES)];
    let mut writes = Vec::new();
    let mut at = 0;
    while at < code.len() && writes.len() < MAX_WRITES {
        let len = match code[at..] {
            // mov rsp, reg
            [0x48 | 0x4c, 0x89, modrm, ..] if modrm & 0xc7 == 0xc4 => 3,
            [0x48 | 0x49, 0x8b, modrm, ..] if modrm & 0xf8 == 0xe0 => 3,
            // mov rsp, [reg+byte]
            [0x48 | 0x49, 0x8b, modrm, _, ..] if modrm & 0xf8 == 0x60 && modrm & 7 != 4 => 4,
            // mov rsp, [reg]
            [0x48 | 0x49, 0x8b, modrm, ..]
                if modrm & 0xf8 == 0x20 && ![4, 5].contains(&(modrm & 7)) =>
            {
                3
            }
            // and rsp, byte
            [0x48, 0x83, 0xe4, _, ..] => 4,
            _ => 0,
        };
        at += len.max(1);
        if len > 0 {
            writes.push(entry + at as u64);
        }
    }
    writes
}
