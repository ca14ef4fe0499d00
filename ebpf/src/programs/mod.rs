//! One file per group of programs.
#![allow(unsafe_code)]

mod disk;
mod event_rows;
mod memory;
mod process;
mod record;
mod registers;
mod sample;
mod scheduler;
mod slow_calls;
mod softirq;
mod syscalls;
mod target;
mod tcp;
pub mod user_stack;
