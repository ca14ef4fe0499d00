//! Chains of calls that a seed decides: eight functions with frames of different shapes call one
//! another in an order that is different in each of twelve chains, down to the leaf. The program
//! prints its chains before it is ready.

use std::convert::identity;
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

const CHAINS: usize = 12;
const LONGEST: u64 = 24;
const NAMES: [&str; 8] = [
    "seeded::bare",
    "seeded::roomy",
    "<seeded::Left as seeded::Side>::turn",
    "<seeded::Right as seeded::Side>::turn",
    "seeded::applied > seeded::applied::{{closure}}",
    "seeded::generic",
    "seeded::vector",
    "seeded::fallible",
];

/// The same generator in every language.
struct Seed(u64);

impl Seed {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

#[inline(never)]
fn leaf(rounds: u64) -> u64 {
    let mut x = rounds | 1;
    for _ in 0..rounds {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
    x
}

trait Side {
    fn turn(&self, chain: &[u8], rounds: u64) -> u64;
}

struct Left;
struct Right([u64; 40]);

impl Side for Left {
    #[inline(never)]
    fn turn(&self, chain: &[u8], rounds: u64) -> u64 {
        black_box(go_on(chain, rounds)) + 1
    }
}

impl Side for Right {
    #[inline(never)]
    fn turn(&self, chain: &[u8], rounds: u64) -> u64 {
        let copy = black_box(self.0);
        black_box(go_on(chain, rounds)) + copy[7]
    }
}

#[inline(never)]
fn bare(chain: &[u8], rounds: u64) -> u64 {
    black_box(go_on(chain, rounds))
}

#[inline(never)]
fn roomy(chain: &[u8], rounds: u64) -> u64 {
    let mut room = [0_u8; 6000];
    black_box(&mut room);
    black_box(go_on(chain, rounds)) + u64::from(room[3])
}

#[inline(never)]
fn applied(chain: &[u8], rounds: u64) -> u64 {
    // An attribute on a closure is stable where it is an argument.
    let step = identity(
        #[inline(never)]
        |more: u64| black_box(go_on(chain, rounds)) + more,
    );
    black_box(step(black_box(2)))
}

#[inline(never)]
fn generic<T: Into<u64> + Copy>(chain: &[u8], rounds: u64, more: T) -> u64 {
    black_box(go_on(chain, rounds)) + more.into()
}

/// Has something to free, whatever happens.
#[inline(never)]
fn vector(chain: &[u8], rounds: u64) -> u64 {
    let mut kept = Vec::with_capacity(9);
    kept.push(rounds);
    let result = black_box(go_on(chain, rounds));
    kept.push(result);
    black_box(&kept).iter().fold(0, |sum, more| sum ^ more)
}

#[inline(never)]
fn fallible(chain: &[u8], rounds: u64) -> Result<u64, String> {
    if rounds == u64::MAX {
        return Err(format!("{chain:?}"));
    }
    Ok(black_box(go_on(chain, rounds)) + 1)
}

#[inline(always)]
fn go_on(chain: &[u8], rounds: u64) -> u64 {
    let Some((first, rest)) = chain.split_first() else {
        return leaf(rounds);
    };
    let sides: [&dyn Side; 2] = [&Left, &Right([0; 40])];
    match first {
        0 => bare(rest, rounds),
        1 => roomy(rest, rounds),
        2 | 3 => black_box(sides[usize::from(first - 2)]).turn(rest, rounds),
        4 => applied(rest, rounds),
        5 => generic(rest, rounds, 7_u32),
        6 => vector(rest, rounds),
        _ => fallible(rest, rounds).unwrap_or(0),
    }
}

#[inline(never)]
fn run(chain: &[u8], rounds: u64) {
    black_box(go_on(chain, rounds));
}

fn rounds_per_ms() -> u64 {
    const ROUNDS: u64 = 1_000_000;
    let used = (0..5).map(|_| {
        let start = thread_cpu_ns();
        leaf(black_box(ROUNDS));
        thread_cpu_ns() - start
    });
    ROUNDS * 1_000_000 / used.min().unwrap_or(1).max(1)
}

fn main() {
    let argument = |at| std::env::args().nth(at);
    let seconds = argument(1).and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(120.0));
    let mut seed = Seed(argument(2).and_then(|text| text.parse().ok()).unwrap_or(1));
    unsafe { signal(SIGTERM, stop) };
    let per_ms = rounds_per_ms();
    let chains: Vec<Vec<u8>> = (0..CHAINS)
        .map(|_| {
            let length = 3 + seed.next(LONGEST - 2);
            (0..length).map(|_| seed.next(NAMES.len() as u64) as u8).collect()
        })
        .collect();
    for chain in &chains {
        let names = chain.iter().map(|&function| NAMES[usize::from(function)]);
        let names: Vec<_> = names.chain(["seeded::leaf"]).collect();
        println!("chain: {}", names.join(" > "));
    }
    println!("ready");
    let _ = std::io::stdout().flush();
    let mut leaf_ns = 0;
    for chain in chains.iter().cycle() {
        if STOPPED.load(Ordering::Relaxed) || Instant::now() >= end {
            break;
        }
        let start = thread_cpu_ns();
        run(chain, 20 * per_ms);
        leaf_ns += thread_cpu_ns() - start;
    }
    println!("{{\"cpu_ns\": {{\"leaf\": {leaf_ns}}}}}");
}
