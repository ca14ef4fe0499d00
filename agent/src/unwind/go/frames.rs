//! Rules from depths, and where functions are on another stack than the one they were called on.
//!
//! | function | before it switches | after |
//! |---|---|---|
//! | `systemstack`, `asmcgocall`, `cgocallback`, `nanotime1`, ... with a frame of their own | depth | their frame pointer, which leads back to the stack they came from: [`Rule::SWITCH`] |
//! | `asmcgocall` until Go 1.20, without a frame | depth | the frame pointer is that of `cgocall`, and the depth of that is known |
//! | `systemstack` until Go 1.20, without a frame | depth | frame pointer of the caller: the caller itself is lost, all above is kept |
//! | `mcall` | depth | what the thread was in last, see [`super::landmarks`]: what runs is the scheduler, for no goroutine |
//! | `morestack` from Go 1.21, on arm64 from 1.18 | depth | likewise: the frame pointer is gone, and the goroutine whose stack grows is known in memory of the runtime alone |
//! | `morestack` before | depth | frame pointer of the caller's caller |
//! | `gogo` | depth | frame pointer, which it restores for the goroutine it continues |
//! | `clone` | depth | root of a new thread |
//! | `rawVforkSyscall` | depth, but the frame pointer of the caller while the return address is in a register | |
//! | `switchToCrashStack0` | depth | nothing: the program ends in a moment |
//!
//! `sigtramp` is marked as the first function of its stack, but has a signal frame above it like
//! any handler.

use std::ops::Range;

use hotspan_abi::unwind::{BASE_OTHER_STACK, FP_SAME, RA_AT_CFA, Rule, WideRule};

use super::{
    AnyRule, Arch, Builder,
    landmarks::{Landmarks, ThreadStacks, name},
};
use crate::process::pclntab::{Function, PcValue};

/// How frames look on a processor.
pub(super) struct Machine {
    /// The rule where the stack is that deep, and the caller's frame pointer is saved so far below the
    /// canonical frame address, 0 if it is not.
    pub rule: fn(depth: i64, saved_below: i64) -> AnyRule,
    /// Which one it is.
    pub arch: Arch,
    /// How far below the canonical frame address a record of caller's frame pointer and return address
    /// lies, which the frame pointer points at.
    pub record_below: fn(depth: i64) -> i64,
    /// Finds where the caller's frame pointer is saved.
    pub find_save: fn(values: &[PcValue], code: &[u8], entry: u64) -> Option<Save>,
    /// Addresses behind instructions that write the stack pointer, other than by a constant.
    pub stack_pointer_writes: fn(code: &[u8], entry: u64) -> Vec<u64>,
    /// Whether the frame pointer is cleared here, or the other stack's own takes its place.
    pub replaces_frame_pointer: fn(code: &[u8]) -> bool,
    /// Finds a store that makes room on the stack as well: the bytes up to behind it, and how much room.
    pub push: fn(code: &[u8]) -> Option<(u64, i64)>,
    /// The address behind a call of the function `callee`.
    pub behind_call: fn(code: &[u8], entry: u64, callee: u64) -> Option<u64>,
    /// The part of `runtime.clone` that both threads go on from. Behind it the new one is alone.
    pub both_threads: fn(code: &[u8], entry: u64) -> Option<Range<u64>>,
    /// Names of functions where a process begins.
    pub starts: &'static [&'static [u8]],
}

/// Longer names are none of those that are special.
pub(super) const MAX_NAME_BYTES: usize = 48;
/// Changes of depth in one function; the rest of a function with more has no rows.
const MAX_DEPTHS: usize = 1 << 20;

/// Where a function saves the caller's frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Save {
    /// First address at which it is saved.
    pub from: u64,
    /// Bytes below the canonical frame address.
    pub below: i64,
}

/// What holds where a function is on another stack.
#[derive(Clone, Copy)]
enum Switched {
    Rule(AnyRule),
    /// The stack of the thread, from this depth of the function's own frame on.
    ThreadStack(ThreadStacks, i64),
}

impl Switched {
    const FOLLOW: Self = Self::Rule(AnyRule::Short(Rule::SWITCH));

    fn rule(self, machine: &Machine, depth: i64) -> AnyRule {
        match self {
            Self::Rule(rule) => rule,
            Self::ThreadStack(threads, start) => {
                AnyRule::Wide(threads.rule(machine, depth - start))
            }
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
pub(super) fn add(
    machine: &Machine,
    landmarks: &Landmarks,
    function: &Function<'_>,
    rows: &mut Builder,
) {
    let name = name(function);
    if name.starts_with(b"runtime.sigreturn") {
        // The kernel makes the handler return to its first byte, and a return address is looked up
        // one byte before.
        rows.add(function.entry - 1..function.end, Rule::SIGNAL.into());
        return;
    }
    if is_root(machine, name, function) {
        rows.add(function.entry..function.end, Rule::ROOT.into());
        return;
    }
    let values: Vec<PcValue> = function.depths().take(MAX_DEPTHS).collect();
    let code = function.code();
    let save = (machine.find_save)(&values, code, function.entry);
    let switch = if function.writes_stack_pointer() || is_switch(name) {
        find_switch(machine, landmarks, function, name, code, &values, save)
    } else {
        Switch::default()
    };
    for PcValue { range, value } in values {
        add_depth(machine, range, value.into(), save, &switch, rows);
    }
}

fn is_root(machine: &Machine, name: &[u8], function: &Function<'_>) -> bool {
    match name {
        b"runtime.goexit" | b"runtime.mstart" | b"runtime.rt0_go" => true,
        b"runtime.sigtramp" => false,
        _ => function.is_top() || machine.starts.contains(&name),
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
    machine: &Machine,
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
        (range.start..saved_from, (machine.rule)(depth, 0)),
        (saved_from..range.end, (machine.rule)(depth, below)),
    ];
    for (mut part, rule) in parts {
        let is_switched = switch.depth.is_none_or(|wanted| wanted == depth);
        for (other, switched) in switch.parts.iter().filter(|_| is_switched) {
            let start = other.start.clamp(part.start, part.end);
            let end = other.end.clamp(part.start, part.end);
            if start < end {
                rows.add(part.start..start, rule);
                rows.add(start..end, switched.rule(machine, depth));
                part.start = end;
            }
        }
        rows.add(part, rule);
    }
}

/// Finds where a function is on another stack than the one it was called on.
fn find_switch(
    machine: &Machine,
    landmarks: &Landmarks,
    function: &Function<'_>,
    name: &[u8],
    code: &[u8],
    values: &[PcValue],
    save: Option<Save>,
) -> Switch {
    if name == b"runtime.clone" {
        let parts = (machine.both_threads)(code, function.entry).map(|both| {
            let child = both.end..function.end;
            vec![
                (both, Switched::Rule(Rule::NEW_THREAD.into())),
                (child, Switched::Rule(Rule::ROOT.into())),
            ]
        });
        return Switch {
            parts: parts.unwrap_or_default(),
            depth: None,
        };
    }
    let writes = (machine.stack_pointer_writes)(code, function.entry);
    let (Some(&first), Some(&last)) = (writes.first(), writes.last()) else {
        return Switch::default();
    };
    let to_end = |rule| vec![(first..function.end, rule)];
    let depth: Option<i64> = values.iter().map(|value| value.value.into()).max();
    let record = depth.filter(|depth| *depth > 0).map(machine.record_below);
    let has_frame = record.is_some() && save.map(|save| save.below) == record;
    let rest = usize::try_from(first - function.entry).ok();
    let rest = rest.and_then(|at| code.get(at..)).unwrap_or_default();
    let parts = match name {
        b"runtime.switchToCrashStack0" => to_end(Switched::Rule(Rule::NONE.into())),
        b"runtime.morestack" if !(machine.replaces_frame_pointer)(rest) => to_end(Switched::FOLLOW),
        b"runtime.mcall" | b"runtime.morestack" => {
            thread_stack(landmarks, first..function.end, values, (machine.push)(rest))
        }
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

/// The stack of the thread that a function is on in this part, or its end when nothing is known of that.
/// Of `push` the depths may tell nothing: `morestack` on arm64.
fn thread_stack(
    landmarks: &Landmarks,
    part: Range<u64>,
    values: &[PcValue],
    push: Option<(u64, i64)>,
) -> Vec<(Range<u64>, Switched)> {
    let depth_at = |addr| {
        let value = values.iter().find(|value| value.range.contains(&addr));
        value.map(|value| i64::from(value.value))
    };
    let (Some(depth), Some(threads)) = (depth_at(part.start - 1), landmarks.threads) else {
        return vec![(part, Switched::Rule(Rule::ROOT.into()))];
    };
    let from = |depth| Switched::ThreadStack(threads, depth);
    match push.map(|(len, bytes)| (part.start + len, bytes)) {
        Some((pushed, bytes)) if depth_at(pushed) == Some(depth) => vec![
            (part.start..pushed, from(depth)),
            (pushed..part.end, from(depth - bytes)),
        ],
        _ => vec![(part, from(depth))],
    }
}

/// Until Go 1.20 this is called on a goroutine's stack by `cgocall` alone, whose frame pointer it
/// leaves in its register: the stack pointer of the call is `cgocall`'s depth below that frame's
/// end. Its second half, for calls that are on the system stack already, has other callers.
fn frameless_asmcgocall(landmarks: &Landmarks, writes: &[u64]) -> Vec<(Range<u64>, Switched)> {
    let (Some(&first), Some(&last)) = (writes.first(), writes.last()) else {
        return Vec::new();
    };
    // To the system stack, aligned, back; aligned, back.
    let &[_, _, back, aligned, _] = writes else {
        return vec![(first..last, Switched::FOLLOW)];
    };
    let of_cgocall = landmarks.cgocall.map_or(Switched::FOLLOW, |depth| {
        Switched::Rule(AnyRule::Wide(WideRule {
            cfa_base: BASE_OTHER_STACK,
            // The frame pointer is 16 below the end of that frame, the return address 8.
            cfa_offset: i32::try_from(8 - depth).unwrap_or(0),
            fp_rule: FP_SAME,
            ra_rule: RA_AT_CFA,
            ra_offset: -8,
            ..WideRule::default()
        }))
    });
    vec![(first..back, of_cgocall), (aligned..last, Switched::FOLLOW)]
}
