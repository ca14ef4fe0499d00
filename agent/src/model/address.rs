//! Addresses with types, so that a process address is never taken for a file's.

use std::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }
        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// An address in a running process, or in the running kernel.
    RuntimeAddr
);
address!(
    /// A virtual address in an ELF file's own terms: what its symbol table and its program
    /// headers use, with address space randomisation taken out.
    ElfAddr
);
address!(
    /// A byte offset into a file.
    FileOffset
);

impl RuntimeAddr {
    /// The address to look a return address up with: one byte back, inside the call instruction,
    /// because a call can be the last instruction of its function.
    #[must_use]
    pub fn lookup_addr(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}
