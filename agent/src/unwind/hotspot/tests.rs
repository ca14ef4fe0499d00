//! A JVM made by hand: its library's tables, one code heap, and blocks of each kind.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use super::*;

/// Pieces of memory by address.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<BTreeMap<u64, Vec<u8>>>>);

impl ReadBytes for Memory {
    fn read_bytes(&self, addr: u64, bytes: &mut [u8]) -> usize {
        let pieces = self.0.borrow();
        let Some((start, piece)) = pieces.range(..=addr).next_back() else {
            return 0;
        };
        let there = piece.get((addr - start) as usize..).unwrap_or_default();
        let len = there.len().min(bytes.len());
        bytes[..len].copy_from_slice(&there[..len]);
        len
    }
}

impl Memory {
    fn put(&self, addr: u64, bytes: &[u8]) {
        let mut pieces = self.0.borrow_mut();
        if let Some((start, piece)) = pieces.range_mut(..=addr).next_back() {
            let into = (addr - start) as usize;
            if let Some(there) = piece.get_mut(into..into + bytes.len()) {
                return there.copy_from_slice(bytes);
            }
        }
        pieces.insert(addr, bytes.to_vec());
    }

    fn put_words(&self, addr: u64, words: &[u64]) {
        let bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(addr, &bytes);
    }
}

const LIBRARY: u64 = 0x7f00_0000_0000;
const FIELDS: u64 = LIBRARY + 0x1_0000;
const TYPES: u64 = LIBRARY + 0x2_0000;
const NAMES: u64 = LIBRARY + 0x3_0000;
const OBJECTS: u64 = LIBRARY + 0x4_0000;
const HEAP: u64 = 0x7e00_0000_0000;
const HEAP_BYTES: u64 = 1 << 20;
const SEGMAP: u64 = 0x7d00_0000_0000;
const LOG2: u32 = 7;

/// Type, field, type of the field, and its offset; for a static one its address.
const LAYOUT: &[(&str, &str, &str, u64)] = &[
    ("CodeCache", "_heaps", "GrowableArray<CodeHeap*>*", OBJECTS),
    ("GrowableArrayBase", "_len", "int", 0),
    ("GrowableArray<int>", "_data", "int*", 8),
    ("CodeHeap", "_memory", "VirtualSpace", 8),
    ("CodeHeap", "_segmap", "VirtualSpace", 64),
    ("CodeHeap", "_log2_segment_size", "int", 128),
    ("VirtualSpace", "_low", "char*", 16),
    ("VirtualSpace", "_high_boundary", "char*", 8),
    ("HeapBlock", "_header", "HeapBlock::Header", 0),
    ("HeapBlock::Header", "_length", "uint32_t", 0),
    ("HeapBlock::Header", "_used", "bool", 4),
    ("CodeBlob", "_name", "const char*", 8),
    ("CodeBlob", "_frame_size", "int", 16),
    ("CodeBlob", "_code_offset", "int", 20),
    ("CodeBlob", "_data_offset", "int", 24),
    ("nmethod", "_osr_entry_point", "address", 32),
    ("nmethod", "_verified_entry_offset", "u2", 40),
    ("nmethod", "_compile_id", "int", 44),
    ("nmethod", "_state", "volatile signed char", 48),
];
const HEADER: u64 = 8;
const CODE_OFFSET: u64 = 56;

fn exports() -> Exports {
    Exports(std::array::from_fn(|at| 0x100 + 8 * at as u64))
}

/// The JVM, with this layout.
fn jvm(layout: &[(&str, &str, &str, u64)]) -> Memory {
    let memory = Memory::default();
    let variables = [FIELDS, 0, 8, 16, 24, 32, 40, 48, TYPES, 16, 24];
    memory.put_words(LIBRARY + 0x100, &variables);
    let mut names = NAMES;
    let mut name = |text: &str| {
        let at = names;
        memory.put(at, &[text.as_bytes(), &[0; 80]].concat());
        names += 0x100;
        at
    };
    let mut fields = Vec::new();
    for &(owner, field, kind, place) in layout {
        let is_static = u64::from(place >= OBJECTS);
        fields.extend([name(owner), name(field), name(kind)]);
        fields.extend([is_static, place * (1 - is_static), place * is_static]);
    }
    fields.extend([0; 6]);
    memory.put_words(FIELDS, &fields);
    memory.put_words(TYPES, &[name("HeapBlock"), 0, HEADER, 0, 0, 0]);
    // The pointer to the array of heaps, the array, its element, and the heap.
    memory.put_words(OBJECTS, &[OBJECTS + 0x100]);
    memory.put_words(OBJECTS + 0x100, &[1, OBJECTS + 0x200]);
    memory.put_words(OBJECTS + 0x200, &[OBJECTS + 0x300]);
    let mut heap = [0; 17];
    (heap[2], heap[3], heap[10], heap[16]) = (HEAP + HEAP_BYTES, HEAP, SEGMAP, LOG2.into());
    memory.put_words(OBJECTS + 0x300, &heap);
    memory.put(SEGMAP, &vec![0xff; (HEAP_BYTES >> LOG2) as usize]);
    memory.put(HEAP, &vec![0; HEAP_BYTES as usize]);
    memory
}

/// Puts a block with code into the heap, so many segments behind its start.
fn put_block(memory: &Memory, segment: u64, name: &str, frame_words: u32, code: &[u8]) -> u64 {
    let at = HEAP + (segment << LOG2);
    let len = (HEADER + CODE_OFFSET + code.len() as u64).div_ceil(1 << LOG2);
    let text = LIBRARY + 0x9_0000 + segment * 0x100;
    memory.put(text, &[name.as_bytes(), &[0; 80]].concat());
    let mut bytes = [0; (HEADER + CODE_OFFSET) as usize];
    let mut set = |at: u64, value: &[u8]| {
        bytes[at as usize..][..value.len()].copy_from_slice(value);
    };
    set(0, &(len as u32).to_le_bytes());
    set(4, &[1]);
    set(HEADER + 8, &text.to_le_bytes());
    set(HEADER + 16, &frame_words.to_le_bytes());
    set(HEADER + 20, &(CODE_OFFSET as u32).to_le_bytes());
    set(
        HEADER + 24,
        &((CODE_OFFSET as u32) + code.len() as u32).to_le_bytes(),
    );
    memory.put(at, &[&bytes[..], code].concat());
    let hops: Vec<_> = (0..len).map(|hops| hops as u8).collect();
    memory.put(SEGMAP + segment, &hops);
    at + HEADER + CODE_OFFSET
}

/// A JVM with one compiled method, and where its code is.
#[cfg(target_arch = "x86_64")]
fn jvm_with_method(code: &[u8]) -> (Memory, u64, CodeCache<Memory>) {
    let memory = jvm(LAYOUT);
    let at = put_block(&memory, 3, "nmethod", 4, code);
    let opened = open(&memory);
    (memory, at, opened)
}

fn open(memory: &Memory) -> CodeCache<Memory> {
    CodeCache::open(&exports(), LIBRARY, memory.clone()).unwrap()
}

/// The rule for an address once code at it has been looked at.
fn rule(code: &mut CodeCache<Memory>, addr: u64) -> TableRule {
    code.learn(&[addr], |_| false);
    let tables = code.take_tables();
    let (_, table) = tables
        .into_iter()
        .find(|(chunk, _)| *chunk == chunk_of(addr))
        .unwrap();
    let table = table.unwrap();
    match table.lookup(addr) {
        TableRule::Wide(at) => {
            assert_eq!(table.wide[at as usize], INTERPRETED);
            TableRule::Wide(0)
        }
        rule => rule,
    }
}

fn from_sp(words: i64, fp: i64) -> TableRule {
    TableRule::Short(Rule::from_register(Rule::FROM_SP, words * 8, fp * 8).unwrap())
}

/// `sub $0x18,%rsp; mov %rbp,0x10(%rsp); nop; add $0x10,%rsp; pop %rbp; ret; push %rcx`.
#[cfg(target_arch = "x86_64")]
const METHOD: &[u8] =
    b"\x48\x81\xec\x18\x00\x00\x00\x48\x89\x6c\x24\x10\x90\x48\x83\xc4\x10\x5d\xc3\x51";

#[cfg(target_arch = "x86_64")]
#[test]
fn frames_of_a_method_are_known_before_in_and_after_its_body() {
    let (_, at, mut code) = jvm_with_method(METHOD);
    let expected = [
        (0, 1, 0),
        (7, 4, 0),
        (12, 4, 2),
        (17, 2, 2),
        (18, 1, 0),
        (19, 4, 2),
    ];
    for (into, words, fp) in expected {
        assert_eq!(rule(&mut code, at + into), from_sp(words, fp), "{into}");
    }
    // Nobody has looked at what lies behind.
    assert_eq!(rule(&mut code, at), from_sp(1, 0));
    let table = code.table(chunk_of(at)).unwrap();
    assert_eq!(table.lookup(at + 0x200), TableRule::Short(Rule::UNSEEN));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn entry_of_a_method_that_is_called_no_more_is_put_back() {
    let mut patched = METHOD.to_vec();
    patched[..5].copy_from_slice(b"\xe9\x11\x22\x33\x44");
    let (_, at, mut code) = jvm_with_method(&patched);
    assert_eq!(rule(&mut code, at + 7), from_sp(4, 0));
    assert_eq!(rule(&mut code, at + 12), from_sp(4, 2));
}

#[test]
fn each_kind_of_code_has_its_rule() {
    let memory = jvm(LAYOUT);
    let interpreter = put_block(&memory, 0, "Interpreter", 0, &[0x90; 64]);
    let stub = put_block(&memory, 9, "StubRoutines (1)", 0, &[0x90; 64]);
    let mut code = open(&memory);
    assert_eq!(rule(&mut code, interpreter + 8), TableRule::Wide(0));
    if cfg!(target_arch = "x86_64") {
        assert_eq!(rule(&mut code, stub), from_sp(1, 0));
    }
}

/// `pop %rcx; call *%rax; mov %rbx,%rsp; pop %rbp; ret`, and `mov 0x618(%r15),%rsp; push %rax; ret` behind
/// it, to which what stands on a base returns.
#[cfg(target_arch = "x86_64")]
#[test]
fn virtual_threads_stand_on_a_frame_that_is_known() {
    let memory = jvm(LAYOUT);
    let code = b"\x59\xff\xd0\x48\x89\xdc\x5d\xc3\x49\x8b\xa7\x18\x06\x00\x00\x50\xc3";
    let at = put_block(&memory, 3, "StubRoutines (continuation stubs)", 0, code);
    let mut code = open(&memory);
    let follow = TableRule::Short(Rule::FRAME_POINTER);
    for (into, expected) in [
        (0, from_sp(1, 0)),
        (1, follow),
        (6, follow),
        // The last byte before the address that is returned to.
        (7, from_sp(10, 2)),
        (8, from_sp(10, 2)),
        (15, from_sp(10, 2)),
        (16, from_sp(11, 2)),
    ] {
        assert_eq!(rule(&mut code, at + into), expected, "{into}");
    }
}

/// `push %rdx; sub $8,%rsp; mov %rbp,(%rsp); and $-16,%rsp; call *%rax; mov (%rsp),%rbp; add $8,%rsp;
/// pop %rdx; jmp *%rax`.
#[cfg(target_arch = "x86_64")]
#[test]
fn handler_pushes_its_return_address_itself() {
    let memory = jvm(LAYOUT);
    let code = b"\x52\x48\x83\xec\x08\x48\x89\x2c\x24\x48\x83\xe4\xf0\xff\xd0\
                 \x48\x8b\x2c\x24\x48\x83\xc4\x08\x5a\xff\xe0";
    let at = put_block(&memory, 3, "ExceptionBlob", 2, code);
    let mut code = open(&memory);
    for (into, expected) in [
        // Below the stack pointer: popped before the jump here.
        (0, from_sp(0, 0)),
        (1, from_sp(1, 0)),
        (9, from_sp(2, 2)),
        (13, from_sp(2, 2)),
        (23, from_sp(1, 0)),
        (24, from_sp(0, 0)),
    ] {
        assert_eq!(rule(&mut code, at + into), expected, "{into}");
    }
}

/// `pop %rax; sub $0x20,%rsp; push %rax; jmp *%rcx`: it makes room above the return address.
#[cfg(target_arch = "x86_64")]
#[test]
fn return_address_is_where_an_adapter_moves_it() {
    let memory = jvm(LAYOUT);
    let code = b"\x58\x48\x83\xec\x20\x50\xff\xe1";
    let at = put_block(&memory, 3, "I2C/C2I adapters", 0, code);
    let mut code = open(&memory);
    assert_eq!(rule(&mut code, at), from_sp(1, 0));
    assert_eq!(rule(&mut code, at + 1), from_sp(0, 0));
    // Where it was, something else may lie now.
    assert_eq!(rule(&mut code, at + 5), TableRule::Wide(0));
    let table = code.table(chunk_of(at)).unwrap();
    let TableRule::Wide(moved) = table.lookup(at + 6) else {
        panic!("{:?}", table.lookup(at + 6));
    };
    let moved = table.wide[moved as usize];
    assert_eq!((moved.cfa_offset, moved.ra_offset), (0x28, -0x28));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn data_among_transitions_is_no_code() {
    let memory = jvm(LAYOUT);
    // Data that would decode to `push %rax`.
    let at = put_block(&memory, 3, "InlineCacheBuffer", 0, &[0x50; 64]);
    assert_eq!(rule(&mut open(&memory), at + 32), from_sp(1, 0));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn code_that_takes_the_place_of_other_code_is_noticed() {
    let (memory, at, mut code) = jvm_with_method(METHOD);
    assert_eq!(rule(&mut code, at + 19), from_sp(4, 2));
    put_block(&memory, 3, "nmethod", 6, METHOD);
    // By a stack that leads there, or else by the next comparison.
    assert_eq!(rule(&mut code, at + 19), from_sp(6, 2));
    memory.put(HEAP + (3 << LOG2), &[0; 8]);
    code.compare();
    assert_eq!(code.take_tables(), [(chunk_of(at), None)]);
}

/// `push %rbp; ret`, behind other stubs that were there before.
#[cfg(target_arch = "x86_64")]
#[test]
fn stub_that_is_added_is_noticed_by_the_next_stack() {
    let memory = jvm(LAYOUT);
    let at = put_block(
        &memory,
        3,
        "vtable chunks",
        0,
        b"\xc3\xcc\xcc\xcc\xcc\xcc\xcc\xcc",
    );
    let mut code = open(&memory);
    assert_ne!(rule(&mut code, at + 5), from_sp(2, 2));
    memory.put(at + 4, b"\x55\xc3");
    assert_eq!(rule(&mut code, at + 5), from_sp(2, 2));
}

#[test]
fn method_that_is_not_complete_is_left_for_later() {
    let memory = jvm(LAYOUT);
    let at = put_block(&memory, 3, "nmethod", 4, &[0x90; 16]);
    memory.put(at - CODE_OFFSET + 48, &[0xff]);
    let mut code = open(&memory);
    code.learn(&[at], |_| true);
    assert_eq!(code.take_tables(), []);
}

#[test]
fn jvm_that_tells_too_little_is_none() {
    for left_out in 0..LAYOUT.len() {
        let mut layout = LAYOUT.to_vec();
        layout.remove(left_out);
        let memory = jvm(&layout);
        assert!(
            CodeCache::open(&exports(), LIBRARY, memory).is_none(),
            "{left_out}"
        );
    }
}

#[test]
fn any_memory_is_survived() {
    let mut seed = 7_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for _ in 0..2000 {
        let memory = jvm(LAYOUT);
        let at = put_block(&memory, 3, "nmethod", 4, &[0x90; 300]);
        put_block(&memory, 20, "I2C/C2I adapters", 0, &[0x90; 100]);
        let places = [
            FIELDS + random(0x400),
            OBJECTS + 0x300 + random(136),
            SEGMAP + random(40),
            at - HEADER - CODE_OFFSET + random(100),
            at + random(300),
        ];
        for _ in 0..3 {
            let place = places[random(places.len() as u64) as usize];
            memory.put(place, &[random(256) as u8]);
        }
        let Some(mut code) = CodeCache::open(&exports(), LIBRARY, memory.clone()) else {
            continue;
        };
        let addrs: Vec<_> = (0..40).map(|_| HEAP + random(HEAP_BYTES)).collect();
        code.learn(&addrs, |_| false);
        code.learn(&[at, at + 299, HEAP + (20 << LOG2) + 80], |_| false);
        code.take_tables();
        memory.put(at, &[random(256) as u8]);
        code.compare();
        code.take_tables();
    }
}
