//! Whether a stack reaches its thread's first function.

use hotspan_abi::records::StopReason;

/// First functions of threads, in user space and in the kernel. Names as symbol tables have them.
const ROOTS: &[&str] = &[
    "_start",
    "__libc_start_main",
    "__libc_start_call_main",
    "clone",
    "__clone",
    "clone3",
    "__clone3",
    "runtime.goexit",
    "runtime.goexit.abi0",
    "runtime.mstart",
    "runtime.mstart.abi0",
    "runtime.rt0_go",
    "runtime.rt0_go.abi0",
    "ret_from_fork",
    "ret_from_fork_asm",
];

/// Whether a stack is complete. `outermost` are the names of its last two frames, the root first;
/// a frame without a name is empty.
///
/// A table knows a thread's first function. A chain of frame pointers does not: the names decide. The
/// C library's own first functions have no frame pointer and often no name, so whatever called
/// `main` is the end too.
#[must_use]
pub fn is_rooted(stop: StopReason, outermost: [&str; 2]) -> bool {
    let [root, callee] = outermost;
    match stop {
        StopReason::NoUserStack | StopReason::Root => true,
        StopReason::Truncated | StopReason::NoRegisters => false,
        StopReason::FramePointerEnd | StopReason::NoUnwindTable | StopReason::StackReadFailed => {
            ROOTS.contains(&root) || callee == "main"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_first_functions_are_roots() {
        assert!(is_rooted(StopReason::Root, ["", ""]));
        assert!(is_rooted(
            StopReason::FramePointerEnd,
            ["runtime.goexit", "main.main"]
        ));
        assert!(is_rooted(StopReason::NoUnwindTable, ["", "main"]));
        assert!(is_rooted(
            StopReason::NoUserStack,
            ["ret_from_fork_asm", ""]
        ));
    }

    #[test]
    fn stack_that_ends_elsewhere_is_not_rooted() {
        assert!(!is_rooted(
            StopReason::FramePointerEnd,
            ["compute", "inner"]
        ));
        assert!(!is_rooted(StopReason::NoUnwindTable, ["main", "compute"]));
        assert!(!is_rooted(StopReason::Truncated, ["_start", "main"]));
    }
}
