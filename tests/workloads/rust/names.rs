//! Names that must be demangled: 70 % in a trait's method of a generic type, 30 % in a closure that
//! a generic function calls.

use std::hint::black_box;
use std::io::Write;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static STOPPED: AtomicBool = AtomicBool::new(false);

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

unsafe extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
}

const SIGTERM: c_int = 15;
const CLOCK_THREAD_CPUTIME_ID: c_int = 3;

extern "C" fn stop(_: c_int) {
    STOPPED.store(true, Ordering::Relaxed);
}

fn thread_cpu_ns() -> u64 {
    let mut time = Timespec { seconds: 0, nanos: 0 };
    unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.seconds as u64 * 1_000_000_000 + time.nanos as u64
}

/// Work that no compiler removes, in the function that says it.
#[inline(always)]
fn burn(rounds: u64) {
    let mut x = rounds | 1;
    for _ in 0..rounds {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

mod market {
    pub trait Price {
        fn settle(&self, rounds: u64);
    }

    pub struct Order<T>(pub T);

    impl Price for Order<u32> {
        #[inline(never)]
        fn settle(&self, rounds: u64) {
            super::burn(rounds + u64::from(self.0));
        }
    }

    #[inline(never)]
    pub fn trade<P: Price>(order: &P, rounds: u64) {
        order.settle(rounds);
        super::black_box(());
    }

    #[inline(never)]
    pub fn each<F: Fn(u64)>(rounds: u64, action: F) {
        action(rounds);
        super::black_box(());
    }
}

#[inline(never)]
fn close_all(rounds: u64) {
    market::each(rounds, #[inline(never)] |rounds| burn(rounds));
    black_box(());
}

fn rounds_per_ms() -> u64 {
    const ROUNDS: u64 = 1_000_000;
    let used = (0..5).map(|_| {
        let start = thread_cpu_ns();
        burn(ROUNDS);
        thread_cpu_ns() - start
    });
    ROUNDS * 1_000_000 / used.min().unwrap_or(1).max(1)
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(120.0));
    unsafe { signal(SIGTERM, stop) };
    let per_ms = rounds_per_ms();
    println!("ready");
    let _ = std::io::stdout().flush();
    let (mut settle_ns, mut close_ns) = (0, 0);
    while !STOPPED.load(Ordering::Relaxed) && Instant::now() < end {
        let start = thread_cpu_ns();
        market::trade(&market::Order(1_u32), 70 * per_ms);
        let middle = thread_cpu_ns();
        close_all(30 * per_ms);
        settle_ns += middle - start;
        close_ns += thread_cpu_ns() - middle;
    }
    println!("{{\"cpu_ns\": {{\"settle\": {settle_ns}, \"close_all\": {close_ns}}}}}");
}
