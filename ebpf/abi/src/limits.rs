//! Bounds that the verifier, the maps and the agent rely on.

/// Kernel frames of one sample: the kernel's own default depth (`kernel.perf_event_max_stack`)
/// is 127, rounded up so that the buffer's size is a power of two.
pub const MAX_KERNEL_FRAMES: usize = 128;

/// Slots for frames in one sample, kernel and user together. A power of two: indexes are masked.
pub const FRAME_SLOTS: usize = 1024;
const _: () = assert!(FRAME_SLOTS.is_power_of_two());

/// User frames of one sample.
pub const MAX_USER_FRAMES: usize = FRAME_SLOTS - MAX_KERNEL_FRAMES;

/// Frames unwound by one call of the BPF global function: each call is verified once, and few
/// calls cost less than many.
pub const FRAMES_PER_CALL: usize = 8;

/// Calls needed for a stack of full depth.
pub const UNWIND_CALLS: usize = MAX_USER_FRAMES / FRAMES_PER_CALL;
const _: () = assert!(UNWIND_CALLS * FRAMES_PER_CALL == MAX_USER_FRAMES);

/// Words of the stack that are read at once. One read of 1 KiB costs about what one of 8 bytes
/// does, and a larger window more often runs past the stack's end.
pub const WINDOW_WORDS: usize = 128;
const _: () = assert!(WINDOW_WORDS.is_power_of_two());

/// Length of a thread name with its terminating zero (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;

/// Ring shared by all CPUs. Holds three seconds of 64-frame samples at 99 Hz on 16 CPUs; the
/// agent scales it with the number of CPUs and the rate, and never sleeps that long.
pub const RING_BYTES: u32 = 4 << 20;
const _: () = assert!(RING_BYTES.is_power_of_two());

/// Processes that can be followed at once by pid.
pub const MAX_TARGETS: u32 = 16384;

/// Levels of cgroups that are searched upwards for the target.
pub const MAX_CGROUP_LEVELS: usize = 16;
