//! What unwinding has to know of a processor: one file each, and nowhere else a difference.

mod aarch64;
mod x86_64;

pub use aarch64::Aarch64;
pub use x86_64::X86_64;

/// The processor that this is built for, or on which the programs will run.
#[cfg(any(
    target_arch = "aarch64",
    all(target_arch = "bpf", bpf_target_arch = "aarch64")
))]
pub type Native = Aarch64;
/// The processor that this is built for, or on which the programs will run.
#[cfg(any(
    target_arch = "x86_64",
    all(target_arch = "bpf", bpf_target_arch = "x86_64")
))]
pub type Native = X86_64;

/// A processor and how Linux runs on it.
pub trait Arch {
    /// Offsets from the stack pointer in a signal trampoline (`struct rt_sigframe`).
    const SIGNAL_FRAME: SignalFrame;
    /// Bytes that a call pushes.
    const CALL_PUSHES: u64;
    /// Whether the frame pointer's record is the upper end of its frame, as a call and a push leave
    /// it. Else the record lies anywhere in the frame, and following it does not tell the caller's
    /// stack pointer.
    const RECORD_ENDS_FRAME: bool;

    /// Where the return address lies by a rule of 24 bits: `base` is what the CFA is above, and the
    /// frame pointer was saved `fp_bytes` below the CFA, 0 if it was not.
    fn return_address_at(base: u64, cfa: u64, fp_bytes: u64) -> u64;

    /// A return address as it was before it was signed.
    fn without_signature(return_address: u64) -> u64;

    /// How far the CFA is above the stack pointer at this address of a procedure linkage table.
    fn plt_cfa_bytes(ip: u64) -> u64;
}

/// Where a signal trampoline finds the [`crate::unwind::Registers`] of the code that was interrupted.
#[derive(Clone, Copy, Debug)]
pub struct SignalFrame {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
    /// Link register.
    pub link: u64,
    /// Register of an aligned frame.
    pub aligned: u64,
    /// Register of results.
    pub result: u64,
    /// Registers of frames that are being made.
    pub scratch: [u64; 2],
}
