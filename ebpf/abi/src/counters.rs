//! Every way the kernel side loses something: the index in the per-CPU array and the name it is
//! shown under. A new early return in `ebpf/` chooses one of these. Why a stack that was kept is cut
//! is not here: its record says so ([`crate::records::StopReason`]).

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A reason, as an index into the per-CPU counter array.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        /// All counters, in index order.
        pub const COUNTERS: &[Counter] = &[$(Counter::$variant,)*];

        impl Counter {
            /// The name under which it is shown and exported.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// A CPU's ring of samples had no room for one, or the ring buffer none for a slow call.
    RingFull = "ring_full",
    /// The ring buffer had no room for a process event.
    RingFullProcess = "process_event_ring_full",
    /// The ring buffer was too full for the stack of a sample whose tables were still being made; the
    /// sample itself was kept, with what the frame pointer gave.
    SnapshotSkipped = "stack_snapshot_skipped",
    /// A scratch slot was missing: more CPUs than the maps were made for.
    NoScratch = "no_scratch",
    /// The kernel refused to walk its own stack.
    KernelStackFailed = "kernel_stack_failed",
    /// The table of followed processes is full; a child is not followed.
    TargetsFull = "targets_full",
    /// Rows of system calls that were taken, full or not.
    SyscallRowsTaken = "syscall_rows_taken",
    /// The table of threads is full; the system calls of one more are not counted.
    SyscallThreadsFull = "syscall_threads_full",
    /// There is no row left for a system call of a process; its calls are not counted.
    SyscallRowsFull = "syscall_rows_full",
    /// There is no room for one more error of a system call; the call is counted, its error is not.
    SyscallErrorsFull = "syscall_errors_full",
    /// There is no row left for a kind of event of a cgroup; it is counted, but not whose it was.
    EventRowsFull = "event_rows_full",
    /// The table of threads is full; the waiting of one more is not counted.
    SwitchedFull = "switched_threads_full",
    /// The table of requests to disks is full; one more is not counted.
    DiskRequestsFull = "disk_requests_full",
    /// The kernel did not tell that a disk was done with a request; it is not counted.
    DiskEndsMissed = "disk_ends_missed",
    /// The table of threads that reclaim memory is full; one more is not counted.
    ReclaimingFull = "reclaiming_threads_full",
}
