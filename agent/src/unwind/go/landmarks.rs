//! Functions of Go's runtime that the rules of others build on.
//!
//! The system stack of a thread begins with `mstart`, which calls `mstart0`, which calls `mstart1`;
//! that remembers `mstart0`'s stack pointer for all who switch there (`g.sched.sp`). So the
//! functions that switch take the place of `mstart0`. While C code calls Go, it is the stack pointer of
//! `cgocallback` that is remembered, above frames of C, and they take the place of that. Where `mstart0` would
//! return to tells the two apart.

use hotspan_abi::unwind::{BASE_BY_CALLER, FP_AT_CFA, RA_AT_CFA, WideRule, place_in_page};

use super::frames::{MAX_NAME_BYTES, Machine};
use crate::process::pclntab::{Function, Pclntab};

/// What is known of them; `None` for what a binary lacks.
pub(super) struct Landmarks {
    /// Depth of `cgocall`.
    pub cgocall: Option<i64>,
    /// The stacks of threads.
    pub threads: Option<ThreadStacks>,
}

/// How the stacks of threads go on for those who switch there.
#[derive(Clone, Copy)]
pub(super) struct ThreadStacks {
    /// Depth of `mstart0`.
    mstart0: i64,
    /// Only where C can call Go.
    callbacks: Option<Callbacks>,
}

#[derive(Clone, Copy)]
struct Callbacks {
    /// Depth of `cgocallback`.
    cgocallback: i64,
    /// Where `mstart0` returns to.
    mstart0_returns_to: u64,
}

impl Landmarks {
    pub(super) fn find(machine: &Machine, table: &Pclntab<'_>) -> Self {
        let (mut cgocall, mut cgocallback) = (None, None);
        let (mut mstart, mut mstart0s) = (None, Vec::new());
        for function in table.functions() {
            match name(&function) {
                b"runtime.cgocall" => cgocall = cgocall.or(Some(function)),
                b"runtime.cgocallback" => cgocallback = cgocallback.or(Some(function)),
                b"runtime.mstart" => mstart = mstart.or(Some(function)),
                // One of them is a wrapper that jumps to the other, for assembly.
                b"runtime.mstart0" if mstart0s.len() < 2 => mstart0s.push(function),
                _ => {}
            }
        }
        Self {
            cgocall: cgocall.as_ref().and_then(depth_of),
            threads: ThreadStacks::find(machine, &mstart0s, mstart, cgocallback),
        }
    }
}

/// A function's name, if it is as short as those that are special, without what marks assembly.
pub(super) fn name<'a>(function: &Function<'a>) -> &'a [u8] {
    let name = function.name_below(MAX_NAME_BYTES);
    name.strip_suffix(b".abi0").unwrap_or(name)
}

/// How deep a function's stack is where it calls others.
fn depth_of(function: &Function<'_>) -> Option<i64> {
    function.depths().map(|value| value.value.into()).max()
}

impl ThreadStacks {
    fn find(
        machine: &Machine,
        mstart0s: &[Function<'_>],
        mstart: Option<Function<'_>>,
        cgocallback: Option<Function<'_>>,
    ) -> Option<Self> {
        let callbacks = match cgocallback {
            Some(cgocallback) => {
                let caller = mstart?;
                let mut callees = mstart0s.iter().map(|callee| callee.entry);
                let returns_to = callees
                    .find_map(|callee| (machine.behind_call)(caller.code(), caller.entry, callee));
                Some(Callbacks {
                    cgocallback: depth_of(&cgocallback)?,
                    mstart0_returns_to: returns_to?,
                })
            }
            None => None,
        };
        Some(Self {
            mstart0: mstart0s.iter().filter_map(depth_of).max()?,
            callbacks,
        })
    }

    /// The rule of a function that has switched there, and has gone so far up from where it was.
    pub(super) fn rule(self, machine: &Machine, pushed: i64) -> WideRule {
        // Depths have 32 bits.
        let offset = |offset: i64| i32::try_from(offset).unwrap_or(i32::MAX);
        let call_pushes = machine.arch.facts().call_pushes;
        let plain = WideRule {
            cfa_offset: offset(self.mstart0 + call_pushes + pushed),
            ra_rule: RA_AT_CFA,
            ra_offset: offset(8 - (machine.record_below)(self.mstart0)),
            ..WideRule::default()
        };
        let Some(callbacks) = self.callbacks else {
            return plain;
        };
        WideRule {
            cfa_base: BASE_BY_CALLER,
            cfa_is_read: place_in_page(callbacks.mstart0_returns_to),
            cfa_addend: offset(callbacks.cgocallback - self.mstart0),
            fp_rule: FP_AT_CFA,
            fp_offset: offset(-(machine.record_below)(callbacks.cgocallback)),
            ..plain
        }
    }
}
