//! Samples as they are built: each in its place in this CPU's ring, see [`hotspan_abi::rings`].

use hotspan_abi::{
    counters::Counter,
    limits::FRAME_SLOTS,
    records::{RecordKind, SampleHeader, SampleRecord, StopReason},
    rings::{CHUNK_BYTES, after, chunk_of, is_full},
};
use hotspan_ebpf::verifier::opaque;

use super::user_stack::Slot;
use crate::{
    kernel_calls::{count, cpu, current_comm, publish},
    maps::{SAMPLES, Scratch},
};

/// Begins a sample of the running thread; `None`, and counted, when the ring is full. A pointer, because the
/// walk has a reference of its own meanwhile.
#[inline(always)]
pub fn begin(
    slot: Slot,
    scratch: &Scratch,
    (pid, tid): (u32, u32),
    time_mono_ns: u64,
) -> Option<*mut SampleRecord> {
    let record = match is_full(scratch.ring) {
        true => None,
        false => current(slot, scratch),
    };
    let Some(record) = record else {
        count(Counter::RingFull);
        return None;
    };
    // One by one: the whole would be cleared by a function, byte by byte. The rest is written at the end.
    let sample = &mut record.sample;
    (sample.header.kind, sample.header.time_mono_ns) = (RecordKind::Sample as u32, time_mono_ns);
    (sample.pid, sample.tid, sample.cpu) = (pid, tid, cpu());
    (sample.kernel_frames, sample.user_frames) = (0, 0);
    // SAFETY: the field has this length.
    unsafe { current_comm(&raw mut sample.comm) };
    Some(record)
}

/// The sample that is being built.
#[inline(always)]
pub fn current(slot: Slot, scratch: &Scratch) -> Option<&'static mut SampleRecord> {
    let position = scratch.ring.written;
    let chunk = chunk_of(position, slot.cpu(), scratch.ring.chunks);
    let place = SAMPLES.get_ptr_mut(chunk)?.cast::<u8>();
    let at = opaque(position) & (CHUNK_BYTES - 8);
    // SAFETY: a record that begins there fits in a chunk, any words are one, and nobody reads it before it
    // is submitted. It belongs to this CPU and the program that runs there, which uses one reference at a
    // time.
    Some(unsafe { &mut *place.add(at as usize).cast::<SampleRecord>() })
}

/// Hands the sample over to the agent.
///
/// # Safety
/// It is the one that was begun last, and nobody refers to it.
#[inline(always)]
pub unsafe fn submit(scratch: &mut Scratch, record: *mut SampleRecord, stop: StopReason) {
    // SAFETY: the caller vouches for it.
    let sample = unsafe { &mut (*record).sample };
    let frames = (sample.kernel_frames + sample.user_frames).min(FRAME_SLOTS as u32);
    let bytes = size_of::<SampleHeader>() as u32 + frames * 8;
    sample.stop = stop as u32;
    sample.header.total_bytes = bytes;
    let end = after(scratch.ring.written, bytes.into());
    publish(&mut scratch.ring.written, end);
}
