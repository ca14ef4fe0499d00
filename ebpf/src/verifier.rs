//! What the kernel's verifier needs beyond what the compiler knows.

/// The same number, of which the compiler knows nothing.
///
/// A mask that the compiler can prove superfluous is left out, though the verifier, which proves
/// less, needs it. Masking the result of this function keeps the mask. An instruction that does
/// nothing is emitted, because an empty one confuses the line information that the kernel checks.
#[cfg(target_arch = "bpf")]
#[allow(unsafe_code)]
#[inline(always)]
#[must_use]
pub fn opaque(mut number: u64) -> u64 {
    // SAFETY: copies a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

/// The same number: only the kernel's verifier needs more.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
#[must_use]
pub fn opaque(number: u64) -> u64 {
    number
}
