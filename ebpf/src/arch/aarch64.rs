//! arm64. Sources: AAPCS64, §6.4.6 (frame records); Linux' `arch/arm64/kernel/signal.c` (`struct
//! rt_sigframe`) and `arch/arm64/include/uapi/asm/sigcontext.h`; its
//! `Documentation/arch/arm64/pointer-authentication.rst`.

use super::{Arch, SignalFrame};

/// arm64.
#[derive(Clone, Copy, Debug)]
pub struct Aarch64;

/// General registers in `struct rt_sigframe`: behind 128 bytes of `siginfo`, 168 of `ucontext`, which
/// are padded to 176, and the address of a fault.
const REGISTERS: u64 = 128 + 176 + 8;

/// What a signature leaves of an address. It takes the bits from the size of a user's address space
/// up, and all but tiny systems have 48 bits of it. With 52, only a program that asks for addresses
/// above the 48 gets them.
const ADDRESS_BITS: u64 = (1 << 48) - 1;

impl Arch for Aarch64 {
    const SIGNAL_FRAME: SignalFrame = SignalFrame {
        ip: REGISTERS + 32 * 8,
        sp: REGISTERS + 31 * 8,
        fp: REGISTERS + 29 * 8,
        link: REGISTERS + 30 * 8,
        aligned: REGISTERS + 19 * 8,
        result: REGISTERS,
        scratch: [REGISTERS + 9 * 8, REGISTERS + 12 * 8],
    };
    const CALL_PUSHES: u64 = 0;
    const RECORD_ENDS_FRAME: bool = false;

    #[inline(always)]
    fn return_address_at(base: u64, cfa: u64, fp_bytes: u64) -> u64 {
        if fp_bytes == 0 {
            base
        } else {
            cfa.wrapping_sub(fp_bytes).wrapping_add(8)
        }
    }

    #[inline(always)]
    fn without_signature(return_address: u64) -> u64 {
        return_address & ADDRESS_BITS
    }

    /// Entries leave the stack alone, and are under [`hotspan_abi::unwind::Rule::link`].
    #[inline(always)]
    fn plt_cfa_bytes(_ip: u64) -> u64 {
        0
    }
}
