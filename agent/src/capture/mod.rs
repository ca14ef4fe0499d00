//! The kernel side as user space sees it.
//!
//! In: nothing but the running kernel. Out: what it can do. Everything that talks to the kernel
//! about BPF and perf events lives here.

mod bpf_syscall;
pub mod features;
