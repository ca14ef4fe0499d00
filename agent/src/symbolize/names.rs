//! Names of addresses in files: through blazesym, and of Go code from its own table.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::Arc,
};

use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer, source};

use super::{
    bounds::readable,
    demangle::{Language, demangle},
    go_symbols,
    linkage::{self, Stub},
};
use crate::{
    model::{FrameKind, Line},
    process::{KnownBinary, survive_cut_files},
};

/// An address's functions, innermost first, and the language they are in.
#[derive(Clone)]
pub struct Named {
    /// Kind of code.
    pub kind: FrameKind,
    /// Functions, innermost first.
    pub lines: Vec<Line>,
}

/// Looks names up in files.
pub struct FileNames {
    symbolizer: Symbolizer,
    with_lines: bool,
    refused: Cell<u64>,
}

impl FileNames {
    /// A look-up in symbol tables, or, `with_lines`, in debugging information too: inlined
    /// functions and source lines, for much more time and memory.
    #[must_use]
    pub fn new(with_lines: bool) -> Self {
        // blazesym maps the files, and their owners may write to them meanwhile.
        survive_cut_files();
        let symbolizer = Symbolizer::builder()
            .enable_code_info(with_lines)
            .enable_inlined_fns(with_lines)
            .enable_demangling(false)
            .build();
        Self {
            symbolizer,
            with_lines,
            refused: Cell::new(0),
        }
    }

    /// How many files have symbols or debugging information that would take too much memory.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Names of ELF addresses of one file, in their order; `None` for each that has none.
    pub fn find(&self, binary: &KnownBinary, addrs: &[u64]) -> Vec<Option<Named>> {
        let Some(path) = binary.open_path() else {
            return unnamed(addrs);
        };
        let stubs = linkage::find(&path, addrs);
        let (_, functions): (Vec<_>, Vec<u64>) = stubs
            .iter()
            .zip(addrs)
            .filter(|(stub, _)| stub.is_none())
            .unzip();
        let mut functions = self.find_functions(path, binary, &functions).into_iter();
        stubs
            .into_iter()
            .map(|stub| match stub {
                Some(Stub(name)) => name.map(|name| named_stub(&name)),
                None => functions.next().flatten(),
            })
            .collect()
    }

    /// Names of addresses that are in no linkage table.
    fn find_functions(
        &self,
        path: PathBuf,
        binary: &KnownBinary,
        addrs: &[u64],
    ) -> Vec<Option<Named>> {
        let mut found = unnamed(addrs);
        let is_go = !binary.facts.go_build_id.is_empty();
        if is_go {
            fill(&mut found, addrs, |rest| self.find_go(&path, rest));
        }
        fill(&mut found, addrs, |rest| {
            let readable = readable(&path, self.with_lines);
            if !readable.symbols {
                self.refused.set(self.refused.get() + 1);
                return unnamed(rest);
            }
            self.find_in(path.clone(), readable.lines, binary, rest)
        });
        // A stripped file may have its symbols installed beside it. That file is the system's.
        if let Some(path) = separate_debug_file(&binary.facts.build_id) {
            fill(&mut found, addrs, |rest| {
                self.find_in(path, self.with_lines, binary, rest)
            });
        }
        // The linker can be told to leave Go's build id out.
        if !is_go {
            fill(&mut found, addrs, |rest| self.find_go(&path, rest));
        }
        found
    }

    fn find_go(&self, path: &Path, addrs: &[u64]) -> Vec<Option<Named>> {
        go_symbols::find(path, addrs, self.with_lines).unwrap_or_else(|| unnamed(addrs))
    }

    fn find_in(
        &self,
        path: PathBuf,
        with_lines: bool,
        binary: &KnownBinary,
        addrs: &[u64],
    ) -> Vec<Option<Named>> {
        let mut elf = source::Elf::new(path);
        elf.debug_syms = with_lines;
        match self
            .symbolizer
            .symbolize(&source::Source::Elf(elf), Input::VirtOffset(addrs))
        {
            Ok(found) => found.iter().map(|symbol| named(symbol, binary)).collect(),
            Err(error) => {
                tracing::debug!(path = %binary.path, %error, "no symbols");
                unnamed(addrs)
            }
        }
    }
}

/// Asks for those names that are still missing, if there are any.
fn fill(
    found: &mut [Option<Named>],
    addrs: &[u64],
    find: impl FnOnce(&[u64]) -> Vec<Option<Named>>,
) {
    let (slots, rest): (Vec<_>, Vec<_>) = found
        .iter_mut()
        .zip(addrs)
        .filter(|(slot, _)| slot.is_none())
        .unzip();
    if rest.is_empty() {
        return;
    }
    for (slot, name) in slots.into_iter().zip(find(&rest)) {
        *slot = name;
    }
}

fn unnamed(addrs: &[u64]) -> Vec<Option<Named>> {
    addrs.iter().map(|_| None).collect()
}

/// Where distributions install the debugging information of stripped files.
fn separate_debug_file(build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("/usr/lib/debug/.build-id/{first:02x}/{rest}.debug");
    Path::new(&path).exists().then(|| path.into())
}

fn named(symbolized: &Symbolized<'_>, binary: &KnownBinary) -> Option<Named> {
    let Symbolized::Sym(symbol) = symbolized else {
        return None;
    };
    let (_, language) = demangle(&symbol.name);
    let kind = match language {
        Language::Rust => FrameKind::Rust,
        // Only Go puts a dot between package and function.
        Language::Unknown if !binary.facts.go_build_id.is_empty() && symbol.name.contains('.') => {
            FrameKind::Go
        }
        Language::Cpp | Language::Unknown => FrameKind::Native,
    };
    Some(Named {
        kind,
        lines: lines(symbol),
    })
}

/// A stub is named as debuggers do it.
fn named_stub(function: &str) -> Named {
    let (name, language) = demangle(function);
    let kind = match language {
        Language::Rust => FrameKind::Rust,
        Language::Cpp | Language::Unknown => FrameKind::Native,
    };
    let line = Line {
        function: format!("{name}@plt").into(),
        system_name: Some(format!("{function}@plt").into()),
        file: None,
        line: 0,
        column: 0,
    };
    Named {
        kind,
        lines: vec![line],
    }
}

/// blazesym lists inlined functions from the outside in, each with the place in itself.
fn lines(symbol: &Sym<'_>) -> Vec<Line> {
    symbol
        .inlined
        .iter()
        .rev()
        .map(|inlined| line(&inlined.name, inlined.code_info.as_ref()))
        .chain([line(&symbol.name, symbol.code_info.as_deref())])
        .collect()
}

fn line(symbol: &str, place: Option<&CodeInfo<'_>>) -> Line {
    let (function, _) = demangle(symbol);
    let function: Arc<str> = function.into();
    let system_name = (*function != *symbol).then(|| symbol.into());
    let file = place.map(|place| place.to_path().to_string_lossy().into());
    let number = place.and_then(|place| place.line).unwrap_or(0);
    let column = place.and_then(|place| place.column).map_or(0, u32::from);
    Line {
        function,
        system_name,
        file,
        line: number,
        column,
    }
}
