//! Bounds that the verifier, the maps and the agent rely on.

/// Kernel frames of one sample: the kernel's own default depth (`kernel.perf_event_max_stack`)
/// is 127, rounded up so that the buffer's size is a power of two.
pub const MAX_KERNEL_FRAMES: usize = 128;

/// Slots for frames in one sample, kernel and user together. A power of two: indexes are masked.
pub const FRAME_SLOTS: usize = 1024;
const _: () = assert!(FRAME_SLOTS.is_power_of_two());

/// User frames of one sample.
pub const MAX_USER_FRAMES: usize = FRAME_SLOTS - MAX_KERNEL_FRAMES;

/// Frames unwound by one call of the BPF global function. Few calls cost less than many, but what one
/// does is verified along every path: eight would take a quarter of a million steps.
pub const FRAMES_PER_CALL: usize = 8;

/// Calls needed for a stack of full depth.
pub const UNWIND_CALLS: usize = MAX_USER_FRAMES / FRAMES_PER_CALL;
const _: () = assert!(UNWIND_CALLS * FRAMES_PER_CALL == MAX_USER_FRAMES);

/// Words of the stack that are read at once. One read of 1 KiB costs about what one of 8 bytes
/// does, and a larger window more often runs past the stack's end.
pub const WINDOW_WORDS: usize = 128;
const _: () = assert!(WINDOW_WORDS.is_power_of_two());

/// Words of a stack that are copied at once into a snapshot. Pieces are aligned to their size, so that
/// none crosses the end of a page.
pub const SNAPSHOT_PIECE_WORDS: usize = 128;

/// The same in bytes.
pub const SNAPSHOT_PIECE_BYTES: u64 = SNAPSHOT_PIECE_WORDS as u64 * 8;

/// Pieces of a snapshot at most: 64 KiB of stack. An interpreter that loads its library uses half of it. Where there
/// is more, as many follow, which the Rust compiler sometimes needs, and as many of the thread's first frames: a single
/// frame of that compiler is 528 KiB large, with 50 KiB of others and of what belongs to the thread above it.
pub const SNAPSHOT_PIECES: usize = 64;

/// So many pieces in a row may be unreadable above one that is readable: pages that a large frame has not touched yet
/// are not in memory. Below the first one any number may be.
pub const SNAPSHOT_HOLE_PIECES: usize = 16;

/// Pieces of the stack that one goes on on, which follow in a snapshot of their own: 8 KiB.
pub const SNAPSHOT_OTHER_PIECES: u32 = 8;

/// Frame records that are followed to find that stack.
pub const SNAPSHOT_RECORDS: u64 = 256;

/// Words of the innermost frames that are searched for a pointer to that stack where no register leads to it: what
/// C does to start a thread takes more than half of them.
pub const SNAPSHOT_SAVED_WORDS: u64 = 256;

/// Words of a snapshot.
pub const SNAPSHOT_WORDS: usize = SNAPSHOT_PIECES * SNAPSHOT_PIECE_WORDS;
const _: () = assert!(SNAPSHOT_PIECES.is_power_of_two() && SNAPSHOT_PIECE_WORDS.is_power_of_two());

/// Length of a thread name with its terminating zero (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;

/// Ring buffer that all CPUs share, of process events and copies of stacks; the agent makes it larger for many
/// CPUs and high rates.
pub const RING_BYTES: u32 = 4 << 20;
const _: () = assert!(RING_BYTES.is_power_of_two());

/// Kinds of programs that walk user stacks. A program of one kind can interrupt one of another on the
/// same CPU, so each kind has working memory of its own there.
pub const WALKERS: u32 = 1;

/// Processes that can be followed at once by pid.
pub const MAX_TARGETS: u32 = 16384;

/// Levels of cgroups that are searched upwards for the target.
pub const MAX_CGROUP_LEVELS: usize = 16;
