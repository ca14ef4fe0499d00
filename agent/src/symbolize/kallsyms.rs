//! Names of kernel addresses, from `/proc/kallsyms`.
//!
//! Lines are `address type name [module]`; modules need not be in order, BPF programs are in the
//! module `bpf`. Without the right to see addresses they are all zero, and no name is found.
//! Read here and not by the symbolizer because only the file itself tells which module a symbol is
//! of, and because kernels without modules lack what the symbolizer wants besides.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

/// Functions of the kernel and its modules by address.
#[derive(Default)]
pub struct Kallsyms {
    symbols: Vec<Symbol>,
    /// All names, one behind the other.
    text: String,
    modules: Vec<Module>,
}

struct Symbol {
    addr: u64,
    name_start: u32,
    name_len: u16,
    module: u16,
}

/// A part of the kernel: the image itself, a module, or all BPF programs.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// `[kernel]`, or the module's name in brackets.
    pub name: String,
    /// Lowest address of a function.
    pub start: u64,
    /// Highest address of a function.
    pub last: u64,
}

/// A kernel address's symbol.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelSymbol<'a> {
    /// Name of the function.
    pub name: &'a str,
    /// Position of its module in [`Kallsyms::modules`].
    pub module: usize,
}

/// No function is so long that an address this far behind its start is inside it.
const MAX_FUNCTION_BYTES: u64 = 1 << 20;
/// A kernel with more symbols has the rest left out.
const MAX_SYMBOLS: usize = 4 << 20;

impl Kallsyms {
    /// Reads the running kernel's symbols.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read() -> io::Result<Self> {
        Self::parse(BufReader::with_capacity(
            64 << 10,
            File::open("/proc/kallsyms")?,
        ))
    }

    fn parse(mut lines: impl BufRead) -> io::Result<Self> {
        let mut symbols = Self::default();
        symbols.modules.push(Module {
            name: "[kernel]".into(),
            start: u64::MAX,
            last: 0,
        });
        let mut line = String::new();
        while symbols.symbols.len() < MAX_SYMBOLS {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                break;
            }
            symbols.add(line.trim_end());
        }
        // Of several names for one address the first is kept: the sort is stable.
        symbols.symbols.sort_by_key(|symbol| symbol.addr);
        symbols.symbols.dedup_by_key(|symbol| symbol.addr);
        Ok(symbols)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let (addr, rest) = line.split_once(' ')?;
        let (kind, rest) = rest.split_once(' ')?;
        let addr = u64::from_str_radix(addr, 16)
            .ok()
            .filter(|&addr| addr != 0)?;
        if !matches!(kind, "t" | "T" | "w" | "W") {
            return None;
        }
        let (name, module) = rest.split_once('\t').unwrap_or((rest, "[kernel]"));
        let module = self.module(module)?;
        let known = &mut self.modules[usize::from(module)];
        known.start = known.start.min(addr);
        known.last = known.last.max(addr);
        let name_start = u32::try_from(self.text.len()).ok()?;
        let name_len = u16::try_from(name.len()).ok()?;
        self.text.push_str(name);
        self.symbols.push(Symbol {
            addr,
            name_start,
            name_len,
            module,
        });
        Some(())
    }

    /// Position of a module; symbols of one module follow each other, so the last is tried first.
    fn module(&mut self, name: &str) -> Option<u16> {
        let known = self.modules.iter().rposition(|module| module.name == name);
        let at = known.unwrap_or_else(|| {
            self.modules.push(Module {
                name: name.into(),
                start: u64::MAX,
                last: 0,
            });
            self.modules.len() - 1
        });
        u16::try_from(at).ok()
    }

    /// The function that holds `addr`.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<KernelSymbol<'_>> {
        let after = self.symbols.partition_point(|symbol| symbol.addr <= addr);
        let symbol = self.symbols[..after].last()?;
        if addr - symbol.addr > MAX_FUNCTION_BYTES {
            return None;
        }
        let start = symbol.name_start as usize;
        let name = self.text.get(start..start + usize::from(symbol.name_len))?;
        Some(KernelSymbol {
            name,
            module: usize::from(symbol.module),
        })
    }

    /// The kernel image, first, and its modules.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ffffffff81000000 T _stext\n\
        ffffffff81000000 T _text\n\
        ffffffff81000100 t do_work\n\
        ffffffff81000200 D a_variable\n\
        nonsense\n\
        ffffffffc0000000 t handle\t[driver]\n\
        ffffffffc0100000 t bpf_prog_1234_sample\t[bpf]\n";

    fn parse(text: &str) -> Kallsyms {
        Kallsyms::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn function_and_module_of_an_address_are_found() {
        let symbols = parse(TEXT);
        let found = |addr| {
            symbols
                .find(addr)
                .map(|s| (s.name, symbols.modules()[s.module].name.as_str()))
        };
        assert_eq!(found(0xffff_ffff_8100_0000), Some(("_stext", "[kernel]")));
        assert_eq!(found(0xffff_ffff_8100_0250), Some(("do_work", "[kernel]")));
        assert_eq!(found(0xffff_ffff_c000_0010), Some(("handle", "[driver]")));
        assert_eq!(
            found(0xffff_ffff_c010_0010),
            Some(("bpf_prog_1234_sample", "[bpf]"))
        );
        assert_eq!(found(0xffff_ffff_ffff_0000), None);
        assert_eq!(found(1), None);
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let zero = parse("0000000000000000 T _stext\n0000000000000000 t handle\t[driver]\n");
        assert_eq!(zero.find(0xffff_ffff_8100_0000), None);
    }

    #[test]
    fn own_kernel_has_functions() {
        let symbols = Kallsyms::read().unwrap();
        assert_eq!(symbols.modules()[0].name, "[kernel]");
    }
}
