use super::*;
#[test]
fn live() {
    let pid: u32 = std::fs::read_to_string("/tmp/j/pid")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let first = maps.lines().find(|l| l.ends_with("libjvm.so")).unwrap();
    let bias = u64::from_str_radix(first.split('-').next().unwrap(), 16).unwrap();
    let file = std::fs::File::open(first.split_whitespace().last().unwrap()).unwrap();
    let exports = Exports::find(&file);
    eprintln!("{exports:x?}");
    let exports = exports.unwrap();
    let memory = crate::process::memory::ProcessMemory(pid);
    let s =
        vm_structs::Structures::read(&exports, bias, &["CodeCache", "HeapBlock::Header"], &memory);
    eprintln!("{s:?}");
    let mut c = CodeCache::open(&exports, bias, memory).unwrap();
    let addrs: Vec<u64> = std::env::var("A")
        .unwrap()
        .split(',')
        .map(|a| u64::from_str_radix(a, 16).unwrap())
        .collect();
    c.learn(&addrs, |_| false);
    for a in &addrs {
        let b = c.block_at(*a).map(|b| b.1);
        eprintln!("{a:x} {:?}", b.map(|b| (&b.blob, b.end)));
        if let Some(b) = b {
            {
                let blob = &b.blob;
                eprintln!(
                    "{}",
                    String::from_utf8_lossy(&vm_structs::read_name(&c.memory, blob.name).unwrap())
                );
            }
            for r in &b.rows.rows {
                eprintln!("  {:x} {:?}", r.0, r.1);
            }
        }
    }
    for (c, t) in c.take_tables() {
        eprintln!(
            "{c:x} {:?}",
            t.map(|t| (
                t.words.len(),
                addrs.iter().map(|a| t.lookup(*a)).collect::<Vec<_>>()
            ))
        );
    }
}
