//! User stacks, for every program that runs in the context of a task.
//!
//! What they work on lies in the [`Slot`] of the program's kind, because BPF global functions, which the
//! verifier checks once and on their own, take only numbers.

use hotspan_abi::{
    counters::Counter,
    limits::{
        FRAME_SLOTS, FRAMES_PER_CALL, MAX_USER_FRAMES, SNAPSHOT_HOLE_PIECES, SNAPSHOT_PIECE_WORDS,
        SNAPSHOT_PIECES, SNAPSHOT_WORDS, UNWIND_CALLS, WALKERS,
    },
    records::{
        EXACT_ADDRESS, RecordHeader, RecordKind, SampleHeader, SampleRecord, SnapshotHeader,
        StopReason,
    },
    unwind::Rule,
};
use hotspan_ebpf::{
    unwind::{LOST, Registers, Step, Unwinder},
    verifier::{Forgotten, opaque},
};

use super::{record, registers::is_in_exec, target::flags_in_mode};
use crate::{
    kernel_calls::{
        MapTables, UserMemory, count, cpu, current_task, generation, has_room, kernel_word,
        send_now,
    },
    maps::{PROCESSES, SCRATCH, Scratch, Seen, offset_of},
};

/// Working memory of a kind of program on this CPU, as an index into [`SCRATCH`].
#[derive(Clone, Copy)]
pub struct Slot(u32);

impl Slot {
    /// That of the only kind that runs: the sampler, or the one that tells slow system calls.
    #[inline(always)]
    pub fn own() -> Self {
        Self(cpu() * WALKERS)
    }

    /// The CPU.
    #[inline(always)]
    pub fn cpu(self) -> u32 {
        self.0 / WALKERS
    }

    /// The memory; `None` on a CPU that appeared after the maps were made. It belongs to this CPU and
    /// this kind of program, which does not interrupt itself: a reference to it is sound as long as no
    /// other is used meanwhile, by a function that gets the slot and not the reference.
    #[inline(always)]
    pub fn scratch(self) -> Option<*mut Scratch> {
        SCRATCH.get_ptr_mut(self.0)
    }
}

/// Gets ready for stacks of a process, and returns its `TARGET_*` flags. What was known of the process
/// that this CPU sampled last is still known, unless anything changed: look-ups in hash tables are a good
/// part of what a sample takes when caches are cold.
#[inline(always)]
pub fn enter(scratch: &mut Scratch, pid: u32) -> u32 {
    let generation = generation();
    let seen = &scratch.seen;
    if seen.generation == generation && seen.pid == pid {
        return seen.flags;
    }
    if seen.generation.of_agent != generation.of_agent {
        scratch.unwinder.forget_rules();
    }
    let flags = flags_in_mode(pid);
    scratch.seen = Seen {
        generation,
        pid,
        flags,
    };
    // SAFETY: a value that is changed meanwhile is read before or after the change.
    let process = unsafe { PROCESSES.get(pid) }.copied().unwrap_or_default();
    scratch.unwinder.enter(process);
    flags
}

/// Adds the user frames to the sample of the slot, from the one with these registers on.
#[inline(always)]
pub fn walk(slot: Slot, registers: Registers) -> StopReason {
    let Some(scratch) = slot.scratch() else {
        return StopReason::NoRegisters;
    };
    // SAFETY: the slot is ours, and the reference ends with the call.
    unsafe { (*scratch).unwinder.start(registers) };
    let stop = walk_frames(slot);
    // SAFETY: the slot is ours, and the reference ends with the call.
    unsafe { review(slot, &mut *scratch, registers, stop) }
}

/// Looks a stack over that was walked: one that is not there any more is none. One that led to code whose
/// table is not there yet is sent along, and one that was cut where tables may be out of date.
#[inline(always)]
fn review(slot: Slot, scratch: &mut Scratch, registers: Registers, stop: StopReason) -> StopReason {
    let is_whole = stop as u32 == StopReason::Root as u32;
    let may_be_outdated = !is_whole && scratch.unwinder.process.is_changing != 0;
    let is_wanted = scratch.unwinder.doubt == LOST || may_be_outdated;
    if !is_wanted && stop as u32 != StopReason::StackReadFailed as u32 {
        return stop;
    }
    let Some(SampleRecord { sample, .. }) = record::current(slot, scratch) else {
        return stop;
    };
    if sample.user_frames <= 1 && is_in_exec() {
        sample.user_frames = 0;
        return StopReason::NoUserStack;
    }
    if is_wanted {
        send_snapshot(scratch, sample, registers);
    }
    stop
}

#[inline(always)]
fn walk_frames(Slot(slot): Slot) -> StopReason {
    for _ in 0..UNWIND_CALLS {
        match unwind_frames(slot) {
            CONTINUE => {}
            reason => return StopReason::try_from(reason).unwrap_or(StopReason::NoUnwindTable),
        }
    }
    StopReason::Truncated
}

/// Not a [`StopReason`]: there may be more frames.
const CONTINUE: u32 = u32::MAX;

/// Unwinds up to [`FRAMES_PER_CALL`] frames. What is rare is in functions of its own, so that the verifier
/// has less to follow here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_frames(slot: u32) -> u32 {
    let Some(scratch) = Slot(slot).scratch() else {
        return StopReason::NoRegisters as u32;
    };
    // SAFETY: the slot is ours, and the reference ends with the call.
    let Some(record) = (unsafe { record::current(Slot(slot), &*scratch) }) else {
        return StopReason::NoRegisters as u32;
    };
    for _ in 0..FRAMES_PER_CALL {
        // SAFETY: the slot is ours, and the reference ends with the call.
        if !unsafe { push_frame(record, &(*scratch).unwinder) } {
            return StopReason::Truncated as u32;
        }
        // SAFETY: as above.
        let rule = if let Some(rule) = unsafe { (*scratch).unwinder.known_rule() } {
            rule
        // SAFETY: as above.
        } else if unsafe { (*scratch).unwinder.is_in_mapping() } || find_mapping(slot) != 0 {
            // SAFETY: as above.
            unsafe { (*scratch).unwinder.find_rule(&MapTables) }
        } else {
            // SAFETY: as above.
            unsafe { (*scratch).unwinder.rule_elsewhere() }
        };
        if rule.is_plain() {
            // SAFETY: as above.
            let step = unsafe { (*scratch).unwinder.step_plain(rule, &mut UserMemory) };
            if let Step::Stop(reason) = step {
                return reason as u32;
            }
        } else if rule == Rule::ROOT {
            return StopReason::Root as u32;
        } else {
            let reason = step_other(slot, rule.0);
            if reason != CONTINUE {
                return reason;
            }
        }
    }
    CONTINUE
}

/// Adds the frame that the unwinder is at to the sample; false when it is full.
#[inline(always)]
fn push_frame(record: &mut SampleRecord, unwinder: &Unwinder) -> bool {
    let SampleRecord { sample, frames } = record;
    if sample.user_frames >= MAX_USER_FRAMES as u32 {
        return false;
    }
    let at = (sample.kernel_frames + sample.user_frames) as usize & (FRAME_SLOTS - 1);
    // The leaf is exact anyway; of the others, those where a signal hit.
    let is_exact = sample.user_frames != 0 && unwinder.is_exact != 0;
    let mark = if is_exact { EXACT_ADDRESS } else { 0 };
    frames[at] = unwinder.registers.ip | mark;
    sample.user_frames += 1;
    true
}

/// Finds the mapping of the frame that the unwinder is at; 0 when it is in none that is known.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_mapping(slot: u32) -> u32 {
    let Some(scratch) = Slot(slot).scratch() else {
        return 0;
    };
    // SAFETY: the slot is ours, and the reference ends with the call.
    u32::from(unsafe { (*scratch).unwinder.find_mapping(&MapTables) })
}

/// Goes to the caller by a rule that is not plain: [`CONTINUE`], or why it does not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn step_other(slot: u32, rule: u32) -> u32 {
    let Some(scratch) = Slot(slot).scratch() else {
        return StopReason::NoRegisters as u32;
    };
    // SAFETY: the slot is ours, and the reference ends with the call.
    let step = unsafe {
        (*scratch)
            .unwinder
            .step_other(Rule(rule), &mut UserMemory, &MapTables)
    };
    match step {
        Step::Caller => CONTINUE,
        Step::Stop(reason) => reason as u32,
    }
}

/// Sends the stack that the sample was taken on. It is large, and what it leads to is wanted for the next
/// sample, so it is read soon.
#[inline(always)]
fn send_snapshot(scratch: &mut Scratch, sample: &SampleHeader, registers: Registers) {
    if !has_room() {
        return count(Counter::SnapshotSkipped);
    }
    const PIECE_BYTES: u64 = (SNAPSHOT_PIECE_WORDS * 8) as u64;
    // A return address that was just popped lies below the stack pointer.
    let start = registers.sp.wrapping_sub(8) & !(PIECE_BYTES - 1);
    // Before the loop: kernels before 6.3 take one for endless whose counter has no register left.
    scratch.snapshot.snapshot = SnapshotHeader {
        header: RecordHeader {
            kind: RecordKind::Snapshot as u32,
            total_bytes: 0,
            time_mono_ns: sample.header.time_mono_ns,
        },
        cpu: sample.cpu,
        words: 0,
        start,
        readable: 0,
        ip: registers.ip,
        sp: registers.sp,
        fp: registers.fp,
        link: registers.link,
        aligned: registers.aligned,
        result: registers.result,
    };
    let readable = Forgotten::at(&mut scratch.snapshot.snapshot.readable);
    // A C library keeps what belongs to a thread on top of its stack: what follows is not of this stack.
    let thread_pointer = kernel_word(current_task() + offset_of!(task_thread_pointer));
    let last_piece = thread_pointer.wrapping_sub(start) / PIECE_BYTES;
    for piece in 0..SNAPSHOT_PIECES {
        if piece as u64 > last_piece {
            break;
        }
        let at = piece * SNAPSHOT_PIECE_WORDS;
        let Some(words) = scratch
            .snapshot
            .words
            .get_mut(at..at + SNAPSHOT_PIECE_WORDS)
        else {
            break;
        };
        let Ok(words) = <&mut [u64; SNAPSHOT_PIECE_WORDS]>::try_from(words) else {
            break;
        };
        let is_read = UserMemory::read(start + piece as u64 * PIECE_BYTES, words);
        readable.set(readable.get() | u64::from(is_read) << piece);
        if readable.get() >> piece.saturating_sub(SNAPSHOT_HOLE_PIECES) == 0 {
            break;
        }
    }
    let pieces = u64::BITS - readable.get().leading_zeros();
    // Opaque, so that the mask stays, which the verifier needs.
    let pieces = opaque(u64::from(pieces)) as u32 & (2 * SNAPSHOT_PIECES as u32 - 1);
    let words = (pieces * SNAPSHOT_PIECE_WORDS as u32).min(SNAPSHOT_WORDS as u32);
    let bytes = size_of::<SnapshotHeader>() as u32 + words * 8;
    let header = &mut scratch.snapshot.snapshot;
    (header.words, header.header.total_bytes) = (words, bytes);
    // SAFETY: the record is larger than `bytes`.
    if !unsafe { send_now((&raw const scratch.snapshot).cast(), u64::from(bytes)) } {
        count(Counter::SnapshotSkipped);
    }
}
