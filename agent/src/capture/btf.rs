//! Offsets of kernel structure members, from the running kernel's type information.
//!
//! Rust programs carry no relocations for kernel structures, so the agent looks the members up in
//! `/sys/kernel/btf/vmlinux` and hands the offsets to the programs before they are loaded.
//! Format: Linux, `Documentation/bpf/btf.rst`.

use std::ops::Range;

use hotspan_abi::settings::{Offsets, ResourceOffsets};

/// A member, a structure or an enumerator that this kernel's type information lacks, or a file
/// that is no type information at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// Not BTF, or cut short.
    #[error("the kernel's type information is malformed")]
    Malformed,
    /// The named thing is not there.
    #[error("the kernel's type information has no {0}")]
    Missing(&'static str),
}

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_POINTER: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Structures nest this deep at most before we call it a loop.
const MAX_NESTING: u32 = 16;

/// A member's offset, with the name that an error tells.
macro_rules! member {
    ($btf:ident, $structure:literal, $path:literal) => {
        $btf.member($structure, $path, concat!($structure, ".", $path))
    };
}

/// Type information, indexed by type id.
pub struct Btf<'a> {
    bytes: &'a [u8],
    strings: Range<usize>,
    /// Where each type's record starts; id 0 is `void` and has none.
    types: Vec<usize>,
}

struct Type {
    name: u32,
    kind: u32,
    /// For structures: bit offsets share their word with a bit field's size.
    has_bitfields: bool,
    count: usize,
    size_or_type: u32,
    /// Where the entries behind the record start.
    entries: usize,
}

impl<'a> Btf<'a> {
    /// Indexes the type information in `bytes`.
    ///
    /// # Errors
    /// When the bytes are no BTF of this machine's byte order, or are cut short.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let mut btf = Self {
            bytes,
            strings: 0..0,
            types: vec![0],
        };
        let word = |at| btf.u32(at).ok_or(BtfError::Malformed);
        if word(0)? as u16 != MAGIC {
            return Err(BtfError::Malformed);
        }
        let header = word(4)? as usize;
        let section = |offset: u32, len: u32| {
            let start = header.checked_add(offset as usize)?;
            let end = start.checked_add(len as usize)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let types = section(word(8)?, word(12)?).ok_or(BtfError::Malformed)?;
        let strings = section(word(16)?, word(20)?).ok_or(BtfError::Malformed)?;
        btf.strings = strings;
        let mut at = types.start;
        while at < types.end {
            let ty = btf.read_type(at).ok_or(BtfError::Malformed)?;
            btf.types.push(at);
            at = ty.entries + entry_bytes(ty.kind, ty.count).ok_or(BtfError::Malformed)?;
        }
        Ok(btf)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn read_type(&self, at: usize) -> Option<Type> {
        let info = self.u32(at + 4)?;
        Some(Type {
            name: self.u32(at)?,
            kind: info >> 24 & 0x1f,
            has_bitfields: info >> 31 == 1,
            count: (info & 0xffff) as usize,
            size_or_type: self.u32(at + 8)?,
            entries: at + 12,
        })
    }

    fn ty(&self, id: u32) -> Option<Type> {
        self.read_type(*self.types.get(id as usize).filter(|_| id != 0)?)
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        let Some(start) = self.strings.start.checked_add(name as usize) else {
            return false;
        };
        let rest = self.bytes.get(start..self.strings.end).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn find(&self, kind: u32, name: &str) -> Option<Type> {
        self.types
            .iter()
            .skip(1)
            .filter_map(|&at| self.read_type(at))
            .find(|ty| ty.kind == kind && self.is_named(ty.name, name))
    }

    /// Byte offset of a member, with `.` between nested members: `task_struct`, `se.load`.
    ///
    /// # Errors
    /// [`BtfError::Missing`] with `what`, the member as a person writes it.
    pub fn member(&self, structure: &str, path: &str, what: &'static str) -> Result<u32, BtfError> {
        Ok(self.member_bits(structure, path, what)? / 8)
    }

    /// The same in bits, for members that are single bits.
    fn member_bits(
        &self,
        structure: &str,
        path: &str,
        what: &'static str,
    ) -> Result<u32, BtfError> {
        let mut ty = self
            .find(KIND_STRUCT, structure)
            .ok_or(BtfError::Missing(what))?;
        let mut bits = 0;
        for name in path.split('.') {
            let (offset, id) = self
                .find_member(&ty, name, 0)
                .ok_or(BtfError::Missing(what))?;
            bits += offset;
            // A leaf need not be a structure, and a path never goes on behind one.
            if let Some(next) = self.resolve(id) {
                ty = next;
            }
        }
        Ok(bits)
    }

    /// Looks `name` up in a structure and in its unnamed members: bit offset and type id.
    fn find_member(&self, ty: &Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > MAX_NESTING || !matches!(ty.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for i in 0..ty.count {
            let at = ty.entries + i * 12;
            let (member, id) = (self.u32(at)?, self.u32(at + 4)?);
            let mut bits = self.u32(at + 8)?;
            if ty.has_bitfields {
                bits &= 0x00ff_ffff;
            }
            if self.is_named(member, name) {
                return Some((bits, id));
            }
            if self.is_named(member, "")
                && let Some(inner) = self.resolve(id)
                && let Some((offset, id)) = self.find_member(&inner, name, depth + 1)
            {
                return Some((bits + offset, id));
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_NESTING {
            let ty = self.ty(id)?;
            match ty.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                    id = ty.size_or_type;
                }
                _ => return Some(ty),
            }
        }
        None
    }

    /// Value of an enumerator.
    #[must_use]
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        let ty = self.find(KIND_ENUM, enumeration)?;
        (0..ty.count)
            .map(|i| ty.entries + i * 8)
            .find(|&at| self.u32(at).is_some_and(|n| self.is_named(n, name)))
            .and_then(|at| self.u32(at + 4))
    }

    /// The offsets every program needs. Those of cgroups are set for cgroup v2.
    ///
    /// # Errors
    /// When a member is missing: a kernel newer or stranger than we know.
    pub fn offsets(&self) -> Result<Offsets, BtfError> {
        Ok(Offsets {
            task_tgid: member!(self, "task_struct", "tgid")?,
            task_pid: member!(self, "task_struct", "pid")?,
            task_mm: member!(self, "task_struct", "mm")?,
            task_stack: member!(self, "task_struct", "stack")?,
            #[cfg(target_arch = "x86_64")]
            task_thread_pointer: member!(self, "task_struct", "thread.fsbase")?,
            #[cfg(target_arch = "aarch64")]
            task_thread_pointer: member!(self, "task_struct", "thread.uw.tp_value")?,
            mm_start_stack: member!(self, "mm_struct", "start_stack")?,
            mm_start_code: member!(self, "mm_struct", "start_code")?,
            mm_end_code: member!(self, "mm_struct", "end_code")?,
            task_signal: member!(self, "task_struct", "signal")?,
            task_sum_exec_runtime: member!(self, "task_struct", "se.sum_exec_runtime")?,
            task_pending_signals: member!(self, "task_struct", "pending.signal")?,
            task_cgroups: member!(self, "task_struct", "cgroups")?,
            signal_live: member!(self, "signal_struct", "live")?,
            css_set_member: member!(self, "css_set", "dfl_cgrp")?,
            css_cgroup: member!(self, "cgroup_subsys_state", "cgroup")?,
            css_parent: member!(self, "cgroup_subsys_state", "parent")?,
            cgroup_kn: member!(self, "cgroup", "kn")?,
            kernfs_id: member!(self, "kernfs_node", "id")?,
            stack_to_pt_regs: 0,
        })
    }

    /// The offsets that programs of resources need. Where this kernel lacks a member, those that are of no
    /// use without it are 0, and `missing` is told.
    pub fn resource_offsets(&self, mut missing: impl FnMut(BtfError)) -> ResourceOffsets {
        let mut offsets = ResourceOffsets::ZERO;
        for group in [
            Self::scheduler_offsets,
            Self::disk_offsets,
            Self::payer_offsets,
            Self::tcp_offsets,
        ] {
            // Each sets its own members.
            match group(self, offsets) {
                Ok(more) => offsets = more,
                Err(error) => missing(error),
            }
        }
        offsets
    }

    fn scheduler_offsets(&self, others: ResourceOffsets) -> Result<ResourceOffsets, BtfError> {
        let in_iowait = self.member_bits("task_struct", "in_iowait", "task_struct.in_iowait")?;
        Ok(ResourceOffsets {
            // Renamed in Linux 5.14.
            task_state: member!(self, "task_struct", "__state")
                .or_else(|_| member!(self, "task_struct", "state"))?,
            task_flags: member!(self, "task_struct", "flags")?,
            task_in_iowait: in_iowait / 8,
            task_in_iowait_mask: 1 << (in_iowait % 8),
            task_run_delay: member!(self, "task_struct", "sched_info.run_delay")?,
            task_last_queued: member!(self, "task_struct", "sched_info.last_queued")?,
            task_run_count: member!(self, "task_struct", "sched_info.pcount")?,
            task_cfs_rq: member!(self, "task_struct", "se.cfs_rq")?,
            cfs_rq_rq: member!(self, "cfs_rq", "rq")?,
            rq_clock: member!(self, "rq", "clock")?,
            ..others
        })
    }

    fn disk_offsets(&self, others: ResourceOffsets) -> Result<ResourceOffsets, BtfError> {
        let (request_disk, queue_disk) = match member!(self, "request", "rq_disk") {
            Ok(disk) => (disk, 0),
            Err(_) => (
                member!(self, "request", "q")?,
                member!(self, "request_queue", "disk")?,
            ),
        };
        // The kernel's data, and the arguments.
        let parameters = self.parameters("btf_trace_block_rq_issue").unwrap_or(2);
        Ok(ResourceOffsets {
            request_disk,
            queue_disk,
            disk_major: member!(self, "gendisk", "major")?,
            disk_first_minor: member!(self, "gendisk", "first_minor")?,
            request_flags: member!(self, "request", "cmd_flags")?,
            request_bytes: member!(self, "request", "__data_len")?,
            request_start: member!(self, "request", "start_time_ns")?,
            request_argument: u32::from(parameters > 2),
            ..others
        })
    }

    fn payer_offsets(&self, others: ResourceOffsets) -> Result<ResourceOffsets, BtfError> {
        Ok(ResourceOffsets {
            request_bio: member!(self, "request", "bio")?,
            bio_blkg: member!(self, "bio", "bi_blkg")?,
            blkg_blkcg: member!(self, "blkcg_gq", "blkcg")?,
            blkcg_css: member!(self, "blkcg", "css")?,
            ..others
        })
    }

    fn tcp_offsets(&self, others: ResourceOffsets) -> Result<ResourceOffsets, BtfError> {
        Ok(ResourceOffsets {
            sock_cgroup: member!(self, "sock", "sk_cgrp_data")?,
            sock_state: member!(self, "sock", "__sk_common.skc_state")?,
            ..others
        })
    }

    /// How many parameters a function has that a type points to, as those of tracepoints do.
    fn parameters(&self, name: &str) -> Option<usize> {
        let pointer = self.resolve(self.find(KIND_TYPEDEF, name)?.size_or_type)?;
        let function = self.resolve(pointer.size_or_type)?;
        (pointer.kind == KIND_POINTER && function.kind == KIND_FUNC_PROTO).then_some(function.count)
    }

    /// Offset in `css_set` of the state of a cgroup v1 controller, such as `cpu`.
    #[must_use]
    pub fn css_set_controller(&self, controller: &str) -> Option<u32> {
        // Two controllers have another name in the kernel than on the mount.
        let name = match controller {
            "blkio" => "io",
            name => name,
        };
        let index = self.enumerator("cgroup_subsys_id", &format!("{name}_cgrp_id"))?;
        let subsys = self.member("css_set", "subsys", "css_set.subsys").ok()?;
        Some(subsys + index * 8)
    }
}

/// Bytes behind a type's record.
fn entry_bytes(kind: u32, count: usize) -> Option<usize> {
    let each = match kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => return Some(4),
        KIND_ARRAY => return Some(12),
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12,
        KIND_ENUM | KIND_FUNC_PROTO => 8,
        0 | 20.. => return None,
        _ => 0,
    };
    Some(each * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure `s { int a; struct { int b; }; }` and an enumeration.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0b\0e\0e_one\0";
        let types: [u32; 31] = [
            1,
            1 << 24,
            4,
            32, // 1: int
            5,
            4 << 24 | 2,
            8,
            7,
            1,
            0,
            0,
            3,
            32, // 2: struct s
            0,
            4 << 24 | 1,
            4,
            9,
            1,
            0, // 3: unnamed struct
            11,
            6 << 24 | 1,
            4,
            13,
            7, // 4: enum e
            0,
            2 << 24,
            1, // 5: pointer
            0,
            10 << 24,
            2,
            0, // 6: const, and a stray word cut off below
        ];
        let types = &types[..30];
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let len = types.len() as u32 * 4;
        for word in [24, 0, len, len, strings.len() as u32] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        types
            .iter()
            .for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn member_of_an_unnamed_member_is_found() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.member("s", "a", "s.a"), Ok(0));
        assert_eq!(btf.member("s", "b", "s.b"), Ok(4));
        assert_eq!(btf.member("s", "c", "s.c"), Err(BtfError::Missing("s.c")));
        assert_eq!(btf.enumerator("e", "e_one"), Some(7));
    }

    #[test]
    fn cut_or_changed_bytes_never_panic() {
        let bytes = sample();
        for len in 0..bytes.len() {
            if let Ok(btf) = Btf::parse(&bytes[..len]) {
                let _ = btf.member("s", "b", "s.b");
            }
        }
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                if let Ok(btf) = Btf::parse(&bytes) {
                    let _ = btf.member("s", "b", "s.b");
                    let _ = btf.enumerator("e", "e_one");
                }
            }
        }
    }
}
