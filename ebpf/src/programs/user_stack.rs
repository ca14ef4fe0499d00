//! User stacks, for every program that runs in the context of a task.
//!
//! What they work on lies in the [`Slot`] of the program's kind, because BPF global functions, which the
//! verifier checks once and on their own, take only numbers.

use hotspan_abi::{
    counters::Counter,
    limits::{
        FRAME_SLOTS, FRAMES_PER_CALL, MAX_USER_FRAMES, SNAPSHOT_HOLE_PIECES, SNAPSHOT_OTHER_PIECES,
        SNAPSHOT_PIECE_BYTES as PIECE_BYTES, SNAPSHOT_PIECE_WORDS, SNAPSHOT_PIECES,
        SNAPSHOT_RECORDS, SNAPSHOT_SAVED_WORDS, SNAPSHOT_WORDS, UNWIND_CALLS, WALKERS,
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
    let Review { stop, is_wanted } = unsafe { review(slot, &mut *scratch, registers, stop) };
    if is_wanted {
        send_stack(slot, registers);
    }
    stop
}

/// What a stack comes to that was walked.
struct Review {
    stop: StopReason,
    /// It is sent along, and its snapshot is ready but for the words.
    is_wanted: bool,
}

/// Looks a stack over that was walked: one that is not there any more is none. One that led to code whose
/// table is not there yet is sent along, and one that was cut where tables may be out of date.
#[inline(always)]
fn review(slot: Slot, scratch: &mut Scratch, registers: Registers, stop: StopReason) -> Review {
    let is_whole = stop as u32 == StopReason::Root as u32;
    let may_be_outdated = !is_whole && scratch.unwinder.process.is_changing != 0;
    let is_lost = scratch.unwinder.doubt == LOST;
    let is_wanted = is_lost || may_be_outdated;
    // Code that has a table need not keep the frame pointer: that it is 0 there says nothing.
    let is_end = stop as u32 == StopReason::FramePointerEnd as u32;
    let stop = if is_lost && is_end {
        StopReason::NoUnwindTable
    } else {
        stop
    };
    let as_it_is = Review {
        stop,
        is_wanted: false,
    };
    if !is_wanted && stop as u32 != StopReason::StackReadFailed as u32 {
        return as_it_is;
    }
    let Some(SampleRecord { sample, .. }) = record::current(slot, scratch) else {
        return as_it_is;
    };
    if sample.user_frames <= 1 && is_in_exec() {
        sample.user_frames = 0;
        return Review {
            stop: StopReason::NoUserStack,
            is_wanted: false,
        };
    }
    if is_wanted {
        begin_snapshot(scratch, sample, registers);
    }
    Review { stop, is_wanted }
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

/// Begins a snapshot with all but its words.
#[inline(always)]
fn begin_snapshot(scratch: &mut Scratch, sample: &SampleHeader, registers: Registers) {
    scratch.snapshot.snapshot = SnapshotHeader {
        header: RecordHeader {
            kind: RecordKind::Snapshot as u32,
            total_bytes: 0,
            time_mono_ns: sample.header.time_mono_ns,
        },
        cpu: sample.cpu,
        words: 0,
        start: 0,
        readable: 0,
        ip: registers.ip,
        sp: registers.sp,
        fp: registers.fp,
        link: registers.link,
        aligned: registers.aligned,
        result: registers.result,
        scratch: registers.scratch,
    };
}

/// Sends the stack that the sample was taken on in one part or two, the thread's first frames if there is more of it
/// than that, since a single frame may be as large, and the start of the stack that it goes on on, as far as frame
/// pointers tell: Go changes stacks, and keeps them. They are large, and what they lead to is wanted for the next
/// sample, so they are read soon.
#[inline(always)]
fn send_stack(Slot(slot): Slot, registers: Registers) {
    // A return address that was just popped lies below the stack pointer.
    let start = registers.sp.wrapping_sub(8) & !(PIECE_BYTES - 1);
    if send_part(slot, start, SNAPSHOT_PIECES as u32) == 0 {
        return;
    }
    let record = goes_on_at(slot, registers.fp);
    let end = end_if_full(slot);
    if end != 0 {
        send_part(slot, end, SNAPSHOT_PIECES as u32);
        let first = first_frames(end + SNAPSHOT_PIECES as u64 * PIECE_BYTES);
        if first != 0 {
            send_part(slot, first, SNAPSHOT_PIECES as u32);
        }
    }
    if record != 0 {
        // A function without a frame may have left the frame pointer to its caller.
        let start = record.wrapping_sub(PIECE_BYTES / 2) & !(PIECE_BYTES - 1);
        send_part(slot, start, SNAPSHOT_OTHER_PIECES);
    }
}

/// Where what belongs to the running thread lies: a C library keeps it on top of the thread's stack.
#[inline(always)]
fn thread_pointer() -> u64 {
    kernel_word(current_task() + offset_of!(task_thread_pointer))
}

/// Sends a part of the stack, of so many pieces at most; 0 when there is no room.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn send_part(slot: u32, start: u64, pieces: u32) -> u32 {
    let Some(scratch) = Slot(slot).scratch() else {
        return 0;
    };
    // SAFETY: the slot is ours, and the reference ends with this function.
    let snapshot = unsafe { &mut (*scratch).snapshot };
    if !has_room() {
        count(Counter::SnapshotSkipped);
        return 0;
    }
    // Before the loop: kernels before 6.3 take one for endless whose counter has no register left.
    (snapshot.snapshot.start, snapshot.snapshot.readable) = (start, 0);
    let readable = Forgotten::at(&mut snapshot.snapshot.readable);
    // What follows is not of this stack.
    let last_piece = thread_pointer().wrapping_sub(start) / PIECE_BYTES;
    let last_piece = last_piece.min(u64::from(pieces.wrapping_sub(1)));
    for piece in 0..SNAPSHOT_PIECES {
        if piece as u64 > last_piece {
            break;
        }
        let at = piece * SNAPSHOT_PIECE_WORDS;
        let Some(words) = snapshot.words.get_mut(at..at + SNAPSHOT_PIECE_WORDS) else {
            break;
        };
        let Ok(words) = <&mut [u64; SNAPSHOT_PIECE_WORDS]>::try_from(words) else {
            break;
        };
        let is_read = UserMemory::read(start + piece as u64 * PIECE_BYTES, words);
        readable.set(readable.get() | u64::from(is_read) << piece);
        let recent = readable.get() >> piece.saturating_sub(SNAPSHOT_HOLE_PIECES);
        if readable.get() != 0 && recent == 0 {
            break;
        }
    }
    let pieces = u64::BITS - readable.get().leading_zeros();
    // Opaque, so that the mask stays, which the verifier needs.
    let pieces = opaque(u64::from(pieces)) as u32 & (2 * SNAPSHOT_PIECES as u32 - 1);
    let words = (pieces * SNAPSHOT_PIECE_WORDS as u32).min(SNAPSHOT_WORDS as u32);
    let bytes = size_of::<SnapshotHeader>() as u32 + words * 8;
    let header = &mut snapshot.snapshot;
    (header.words, header.header.total_bytes) = (words, bytes);
    // SAFETY: the record is larger than `bytes`.
    if !unsafe { send_now((&raw const *snapshot).cast(), u64::from(bytes)) } {
        count(Counter::SnapshotSkipped);
        return 0;
    }
    1
}

/// Where the part of the stack ends that was copied; 0 if that is all of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn end_if_full(slot: u32) -> u64 {
    let Some(scratch) = Slot(slot).scratch() else {
        return 0;
    };
    // SAFETY: the slot is ours, and the reference ends with this function.
    let copied = unsafe { &(*scratch).snapshot.snapshot };
    if copied.words < SNAPSHOT_WORDS as u32 {
        return 0;
    }
    copied.start + SNAPSHOT_PIECES as u64 * PIECE_BYTES
}

/// Where the part of the stack begins that holds the thread's first frames; 0 if the stack was copied up to its end.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn first_frames(end: u64) -> u64 {
    let mut top = thread_pointer();
    if top <= end {
        let mm = kernel_word(current_task() + offset_of!(task_mm));
        top = kernel_word(mm + offset_of!(mm_start_stack));
    }
    if top <= end {
        return 0;
    }
    let below = (SNAPSHOT_PIECES as u64 - 1) * PIECE_BYTES;
    end.max((top & !(PIECE_BYTES - 1)).wrapping_sub(below))
}

/// A frame record on the stack that the one goes on on that was copied; 0 if none is known. C that Go calls on a
/// thread's own stack uses the register of the frame pointer otherwise, and has saved it.
#[inline(always)]
fn goes_on_at(slot: u32, fp: u64) -> u64 {
    let record = leaves_at(slot, fp);
    if is_record(record) != 0 {
        return record;
    }
    match saved_record(slot) {
        0 => record,
        saved => saved,
    }
}

/// Where the chain of frame pointers that begins with `fp` leaves the part of the stack that was copied; 0 if it
/// does not.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn leaves_at(slot: u32, fp: u64) -> u64 {
    let Some(scratch) = Slot(slot).scratch() else {
        return 0;
    };
    // SAFETY: the slot is ours, and the reference ends with this function.
    let snapshot = unsafe { &(*scratch).snapshot };
    let copied = u64::from(snapshot.snapshot.words) * 8;
    let mut fp = fp;
    let mut steps = opaque(SNAPSHOT_RECORDS);
    while steps != 0 {
        steps -= 1;
        let into = fp.wrapping_sub(snapshot.snapshot.start);
        if fp & 7 != 0 {
            break;
        }
        if into >= copied {
            return fp;
        }
        fp = snapshot.words[opaque(into / 8) as usize & (SNAPSHOT_WORDS - 1)];
    }
    0
}

/// The frame record elsewhere that the innermost frames have saved a pointer to; 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn saved_record(slot: u32) -> u64 {
    let Some(scratch) = Slot(slot).scratch() else {
        return 0;
    };
    // SAFETY: the slot is ours, and the reference ends with this function.
    let snapshot = unsafe { &(*scratch).snapshot };
    let SnapshotHeader {
        start, sp, words, ..
    } = snapshot.snapshot;
    let copied = u64::from(words);
    let mut at = sp.wrapping_sub(start) / 8;
    let mut left = opaque(SNAPSHOT_SAVED_WORDS);
    while left != 0 && at < copied {
        left -= 1;
        let fp = snapshot.words[opaque(at) as usize & (SNAPSHOT_WORDS - 1)];
        at += 1;
        let is_elsewhere = fp.wrapping_sub(start) >= copied * 8;
        if is_elsewhere && may_be_pointer(fp) && is_record(fp) != 0 {
            return fp;
        }
    }
    0
}

/// Most words of a stack are no pointers to words, and to find that out by reading there takes as long as a page fault.
#[inline(always)]
fn may_be_pointer(word: u64) -> bool {
    word & 7 == 0 && word >> 16 != 0 && word >> 48 == 0
}

/// Whether a frame's caller is told here, which is in the program that was started: 1 if so.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_record(fp: u64) -> u32 {
    let mut record = [0; 2];
    if !may_be_pointer(fp) || !UserMemory::read(fp, &mut record) {
        return 0;
    }
    let [caller, return_address] = record;
    let mm = kernel_word(current_task() + offset_of!(task_mm));
    let is_code = return_address >= kernel_word(mm + offset_of!(mm_start_code))
        && return_address < kernel_word(mm + offset_of!(mm_end_code));
    u32::from(is_code && (caller == 0 || caller > fp))
}
