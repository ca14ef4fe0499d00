//! Frames before they have names: where an address lies, kept independent of the process that
//! ran there, so that it can be named when the process is gone.

use hotspan_abi::records::StopReason;

/// A file that is known to the running agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BinaryId(pub u32);

/// A process that was sampled: one life of a pid, between two execs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u32);

/// A frame as it was captured. Return addresses are already moved into the call instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RawFrame {
    /// An address in the running kernel.
    Kernel(u64),
    /// An offset in a file.
    File(BinaryId, u64),
    /// An address in code that a process made at run time.
    Anonymous(ProcessId, u64),
    /// An address in no mapping that is known.
    Nowhere(u64),
    /// The mark that a stack is cut, and why.
    Cut(StopReason),
}
