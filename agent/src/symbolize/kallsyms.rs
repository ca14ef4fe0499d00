//! Names of kernel addresses, from `/proc/kallsyms`.
//!
//! Lines are `address type name [module]`; modules need not be in order, BPF programs are in the
//! module `bpf`. Without the right to see addresses they are all zero, and no name is found.
//! Read here and not by the symbolizer because only the file itself tells which module a symbol is
//! of, and because kernels without modules lack what the symbolizer wants besides.
//!
//! A kernel has some hundred thousand symbols and a profile needs some hundred of them: only these
//! are kept while the file goes by. Who makes one profile after the other can keep all functions of the
//! kernel's image, some megabytes, and read the file no more than modules and BPF programs ask for.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    ops::Range,
};

/// The functions that hold some addresses, and the modules of the kernel.
#[derive(Default)]
pub struct Kallsyms {
    /// The addresses, ascending, and the nearest function below each so far.
    wanted: Vec<(u64, Option<Symbol>)>,
    modules: Vec<Module>,
    /// All functions of the image, if they are kept.
    image: Option<Image>,
}

/// Functions by address, with where their names are.
#[derive(Default)]
struct Image {
    functions: Vec<(u64, Range<u32>)>,
    names: String,
}

impl Image {
    fn add(&mut self, addr: u64, name: &str) {
        let start = self.names.len() as u32;
        self.names.push_str(name);
        self.functions.push((addr, start..self.names.len() as u32));
    }

    /// Sorts by address; of several names for one, the first is kept.
    fn sort(&mut self) {
        self.functions.sort_by_key(|(addr, _)| *addr);
        self.functions.dedup_by_key(|(addr, _)| *addr);
    }

    fn find(&self, addr: u64) -> Option<&str> {
        let above = self.functions.partition_point(|(start, _)| *start <= addr);
        let (start, name) = self.functions.get(above.checked_sub(1)?)?;
        let is_inside = addr - start <= MAX_FUNCTION_BYTES;
        self.names
            .get(name.start as usize..name.end as usize)
            .filter(|_| is_inside)
    }
}

struct Symbol {
    addr: u64,
    name: String,
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
const MAX_LINES: usize = 8 << 20;
/// No line is longer: names have 512 bytes at most.
const MAX_LINE_BYTES: u64 = 4 << 10;

impl Kallsyms {
    /// Reads the running kernel's symbols for addresses; with `keeps_image` also for all others in its image.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(addrs: impl IntoIterator<Item = u64>, keeps_image: bool) -> io::Result<Self> {
        let file = BufReader::with_capacity(64 << 10, File::open("/proc/kallsyms")?);
        Self::parse(file, addrs, keeps_image)
    }

    fn parse(
        mut lines: impl BufRead,
        addrs: impl IntoIterator<Item = u64>,
        keeps_image: bool,
    ) -> io::Result<Self> {
        let mut wanted: Vec<_> = addrs.into_iter().map(|addr| (addr, None)).collect();
        wanted.sort_by_key(|wanted| wanted.0);
        let mut symbols = Self {
            wanted,
            modules: vec![Module {
                name: "[kernel]".into(),
                start: u64::MAX,
                last: 0,
            }],
            image: keeps_image.then(Image::default),
        };
        let mut line = Vec::new();
        for _ in 0..MAX_LINES {
            line.clear();
            if (&mut lines)
                .take(MAX_LINE_BYTES)
                .read_until(b'\n', &mut line)?
                == 0
            {
                break;
            }
            if let Ok(line) = str::from_utf8(&line) {
                symbols.add(line.trim_end());
            }
        }
        symbols.share();
        if let Some(image) = &mut symbols.image {
            image.sort();
        }
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
        if let Some(image) = self.image.as_mut().filter(|_| module == 0) {
            image.add(addr, name);
        }
        // It may be the nearest of the first address at or above it; see `share` for the others.
        let above = self.wanted.partition_point(|wanted| wanted.0 < addr);
        let (wanted, nearest) = self.wanted.get_mut(above)?;
        // Of several names for one address the first is kept.
        let is_nearer = nearest.as_ref().is_none_or(|nearest| nearest.addr < addr);
        if is_nearer && *wanted - addr <= MAX_FUNCTION_BYTES {
            *nearest = Some(Symbol {
                addr,
                name: name.into(),
                module,
            });
        }
        Some(())
    }

    /// What is nearest below an address is so for the next one too, unless there is one between.
    fn share(&mut self) {
        for above in 1..self.wanted.len() {
            let (below, rest) = self.wanted.split_at_mut(above);
            let (addr, nearest) = &mut rest[0];
            if let (Some((_, Some(symbol))), None) = (below.last(), &nearest)
                && *addr - symbol.addr <= MAX_FUNCTION_BYTES
            {
                *nearest = Some(Symbol {
                    name: symbol.name.clone(),
                    ..*symbol
                });
            }
        }
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

    /// Whether all functions of the image are kept and this address is among them.
    #[must_use]
    pub fn covers(&self, addr: u64) -> bool {
        let image = self.modules.first().filter(|_| self.image.is_some());
        image.is_some_and(|image| (image.start..image.last).contains(&addr))
    }

    /// The function that holds `addr`, one of those that were asked for or of the image.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<KernelSymbol<'_>> {
        if self.covers(addr) {
            let name = self.image.as_ref()?.find(addr)?;
            return Some(KernelSymbol { name, module: 0 });
        }
        let at = self.wanted.partition_point(|wanted| wanted.0 < addr);
        let (found, nearest) = self.wanted.get(at)?;
        let symbol = nearest.as_ref().filter(|_| *found == addr)?;
        Some(KernelSymbol {
            name: &symbol.name,
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

    fn parse(text: &str, addrs: &[u64]) -> Kallsyms {
        Kallsyms::parse(text.as_bytes(), addrs.iter().copied(), false).unwrap()
    }

    #[test]
    fn the_image_is_kept_for_addresses_that_nobody_asked_for() {
        let symbols = Kallsyms::parse(TEXT.as_bytes(), [], true).unwrap();
        let name = |addr| symbols.find(addr).map(|symbol| symbol.name);
        assert_eq!(name(0xffff_ffff_8100_0000), Some("_stext"));
        assert_eq!(name(0xffff_ffff_8100_00ff), Some("_stext"));
        assert!(symbols.covers(0xffff_ffff_8100_0010));
        for outside in [0xffff_ffff_c000_0010, 0xffff_ffff_80ff_ffff, 0] {
            assert!(!symbols.covers(outside), "{outside:x}");
            assert_eq!(name(outside), None);
        }
        assert!(!parse(TEXT, &[]).covers(0xffff_ffff_8100_0010));
    }

    #[test]
    fn function_and_module_of_an_address_are_found() {
        let expected = [
            (0xffff_ffff_8100_0000, Some(("_stext", "[kernel]"))),
            (0xffff_ffff_8100_00ff, Some(("_stext", "[kernel]"))),
            (0xffff_ffff_8100_0100, Some(("do_work", "[kernel]"))),
            (0xffff_ffff_8100_0250, Some(("do_work", "[kernel]"))),
            (0xffff_ffff_8100_0260, Some(("do_work", "[kernel]"))),
            (0xffff_ffff_c000_0010, Some(("handle", "[driver]"))),
            (
                0xffff_ffff_c010_0010,
                Some(("bpf_prog_1234_sample", "[bpf]")),
            ),
            (0xffff_ffff_ffff_0000, None),
            (1, None),
        ];
        // Whatever the order of the lines.
        let mut lines: Vec<_> = TEXT.lines().collect();
        for _ in 0..lines.len() {
            let symbols = parse(&lines.join("\n"), &expected.map(|(addr, _)| addr));
            for (addr, expected) in expected {
                let found = symbols.find(addr);
                let found = found.map(|s| (s.name, symbols.modules()[s.module].name.as_str()));
                let is_alias = matches!(found, Some(("_text", _)));
                assert!(found == expected || is_alias, "{addr:x} {found:?}");
            }
            lines.rotate_left(1);
        }
        let symbols = parse(TEXT, &[1]);
        assert_eq!(symbols.find(0xffff_ffff_8100_0000), None, "nobody asked");
        let kernel = &symbols.modules()[0];
        assert_eq!(
            (kernel.start, kernel.last),
            (0xffff_ffff_8100_0000, 0xffff_ffff_8100_0100)
        );
    }

    #[test]
    fn first_of_several_names_is_kept() {
        let addr = 0xffff_ffff_8100_0000;
        let symbols = parse(TEXT, &[addr, addr + 1]);
        assert_eq!(symbols.find(addr).unwrap().name, "_stext");
        assert_eq!(symbols.find(addr + 1).unwrap().name, "_stext");
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let addr = 0xffff_ffff_8100_0000;
        let zero = parse(
            "0000000000000000 T _stext\n0000000000000000 t handle\t[driver]\n",
            &[addr],
        );
        assert_eq!(zero.find(addr), None);
    }

    #[test]
    fn endless_line_is_no_symbol() {
        let text = format!("ffffffff81000000 t {}\n{TEXT}", "x".repeat(1 << 20));
        let addr = 0xffff_ffff_8100_0100;
        assert_eq!(parse(&text, &[addr]).find(addr).unwrap().name, "do_work");
    }

    #[test]
    fn own_kernel_has_functions() {
        let symbols = Kallsyms::read([0], false).unwrap();
        assert_eq!(symbols.modules()[0].name, "[kernel]");
    }
}
