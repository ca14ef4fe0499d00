//! x86-64. Sources: System V ABI, AMD64 supplement, §3.2.2 (frames); `struct sigcontext` in Linux'
//! `arch/x86/include/uapi/asm/sigcontext.h`.

use super::{Arch, SignalFrame};

/// x86-64.
#[derive(Clone, Copy, Debug)]
pub struct X86_64;

/// `uc_mcontext` in `struct ucontext`, which the stack pointer is at: the word below it was the
/// trampoline's address, and is popped.
const CONTEXT: u64 = 40;

impl Arch for X86_64 {
    const SIGNAL_FRAME: SignalFrame = SignalFrame {
        ip: CONTEXT + 16 * 8,
        sp: CONTEXT + 15 * 8,
        fp: CONTEXT + 10 * 8,
        link: CONTEXT + 8 * 8,
        aligned: CONTEXT + 11 * 8,
        result: CONTEXT + 13 * 8,
        scratch: [CONTEXT + 2 * 8, CONTEXT + 3 * 8],
    };
    const CALL_PUSHES: u64 = 8;
    const RECORD_ENDS_FRAME: bool = true;

    #[inline(always)]
    fn return_address_at(_base: u64, cfa: u64, _fp_bytes: u64) -> u64 {
        cfa.wrapping_sub(8)
    }

    #[inline(always)]
    fn without_signature(return_address: u64) -> u64 {
        return_address
    }

    /// An entry pushes before its twelfth byte.
    #[inline(always)]
    fn plt_cfa_bytes(ip: u64) -> u64 {
        if ip & 15 >= 11 { 16 } else { 8 }
    }
}
