//! main → first → second (of a trait) → third (generic) → leaf. Each calls the next one again and
//! again.

use std::hint::black_box;
use std::io::Write;

#[inline(never)]
fn leaf(mut x: u64) -> u64 {
    for _ in 0..1000 {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
    x
}

#[inline(never)]
fn third<T: Into<u64> + Copy>(start: T) -> u64 {
    let mut x = start.into();
    for _ in 0..3 {
        x ^= leaf(x);
    }
    black_box(x)
}

trait Price {
    fn second(&self, x: u64) -> u64;
}

struct Order(u64);

impl Price for Order {
    #[inline(never)]
    fn second(&self, mut x: u64) -> u64 {
        for _ in 0..3 {
            x = x.wrapping_add(third(x as u32)) ^ self.0;
        }
        black_box(x)
    }
}

#[inline(never)]
fn first(orders: &[Box<dyn Price>], mut x: u64) -> u64 {
    for order in orders {
        x = x.wrapping_add(order.second(x));
    }
    black_box(x)
}

fn main() {
    println!("ready");
    let _ = std::io::stdout().flush();
    let orders: Vec<Box<dyn Price>> = vec![Box::new(Order(1)), Box::new(Order(2))];
    let mut x = 1;
    loop {
        x = first(&orders, x);
    }
}
