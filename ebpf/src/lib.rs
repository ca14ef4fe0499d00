//! The logic of the kernel side, free of kernel calls: it builds and is tested on the host, and is
//! compiled into the eBPF programs unchanged.
//!
//! In: registers and a way to read memory. Out: the next frame, or the reason why there is none.
//! It deliberately knows no map, no helper and no program type.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(test)]
extern crate std;

pub mod arch;
pub mod unwind;
pub mod verifier;
