//! One file per group of programs.
#![allow(unsafe_code)]

mod process;
mod registers;
mod sample;
mod syscalls;
mod target;
pub mod user_stack;
