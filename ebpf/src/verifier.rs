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

/// A number in memory of a map, of which neither the compiler nor the verifier knows anything.
///
/// A search compares its bounds at each step, and the verifier would follow every outcome of every
/// comparison. Of what it reads from a map it remembers nothing, so after a step all ways look alike.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct Forgotten<T>(T);

impl Forgotten<u32> {
    /// Zero.
    pub const ZERO: Self = Self(0);
}

impl<T: Copy> Forgotten<T> {
    /// In this place.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub fn at(place: &mut T) -> &mut Self {
        // SAFETY: it is nothing but the number.
        unsafe { &mut *(&raw mut *place).cast() }
    }

    /// Sets the number.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub fn set(&mut self, number: T) {
        // SAFETY: a plain number that is ours.
        unsafe { core::ptr::write_volatile(&raw mut self.0, number) };
    }

    /// The number.
    #[allow(unsafe_code)]
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> T {
        // SAFETY: a plain number that is ours.
        unsafe { core::ptr::read_volatile(&raw const self.0) }
    }
}
