//! The one place where monotonic time becomes wall-clock time.
#![allow(unsafe_code)] // The clocks.

/// How far two clocks are ahead of the monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall_minus_mono_ns: i64,
    boot_minus_mono_ns: i64,
}

impl Clock {
    /// Reads the clocks.
    #[must_use]
    pub fn read() -> Self {
        let mono = now(libc::CLOCK_MONOTONIC);
        Self {
            wall_minus_mono_ns: now(libc::CLOCK_REALTIME) - mono,
            boot_minus_mono_ns: now(libc::CLOCK_BOOTTIME) - mono,
        }
    }

    /// Nanoseconds since the Unix epoch of a monotonic time.
    #[must_use]
    pub fn wall_of_mono(&self, mono_ns: u64) -> u64 {
        mono_ns.saturating_add_signed(self.wall_minus_mono_ns)
    }

    /// Nanoseconds since the Unix epoch of a time since boot.
    #[must_use]
    pub fn wall_of_boot(&self, boot_ns: u64) -> u64 {
        boot_ns.saturating_add_signed(self.wall_minus_mono_ns - self.boot_minus_mono_ns)
    }
}

/// `CLOCK_MONOTONIC`, as the kernel side stamps its records.
#[must_use]
pub fn now_mono_ns() -> u64 {
    now(libc::CLOCK_MONOTONIC) as u64
}

fn now(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is written to a live variable; these clocks always exist.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
