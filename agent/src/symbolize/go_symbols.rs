//! Names in Go binaries, from the table that their runtime prints its own stacks with. It is there
//! in stripped binaries too, and knows files, lines and inlined calls without debugging information.

use std::{borrow::Cow, fs::File, path::Path};

use object::ReadCache;

use super::names::Named;
use crate::{
    model::{FrameKind, Line},
    process::pclntab::{self, Call, Function},
};

/// Names of ELF addresses of a file, in their order; `None` for each that is not Go's, and `None`
/// when nothing in the file is. `with_lines` adds inlined calls, files and lines.
#[must_use]
pub fn find(path: &Path, addrs: &[u64], with_lines: bool) -> Option<Vec<Option<Named>>> {
    let file = ReadCache::new(File::open(path).ok()?);
    let table = pclntab::find(&file)?;
    let name = |addr: &u64| named(&table.function_at(*addr)?, *addr, with_lines);
    Some(addrs.iter().map(name).collect())
}

fn named(function: &Function<'_>, addr: u64, with_lines: bool) -> Option<Named> {
    // Code of other languages has no depths; it may have better names elsewhere.
    function.depths().next()?;
    let lines = if with_lines {
        function.calls(addr).iter().map(line_of_call).collect()
    } else {
        vec![line(&String::from_utf8_lossy(function.name()))]
    };
    Some(Named {
        kind: FrameKind::Go,
        lines,
    })
}

fn line_of_call(call: &Call) -> Line {
    Line {
        file: (!call.file.is_empty()).then(|| call.file.as_str().into()),
        line: call.line,
        ..line(&call.name)
    }
}

fn line(system_name: &str) -> Line {
    let function = printed(system_name);
    Line {
        system_name: (function != system_name).then(|| system_name.into()),
        function: function.into(),
        file: None,
        line: 0,
        column: 0,
    }
}

/// A name as Go prints it: what a generic function is made for is left out
/// (`runtime.funcNameForPrint`).
fn printed(name: &str) -> Cow<'_, str> {
    match (name.find('['), name.rfind(']')) {
        (Some(start), Some(end)) if start < end => {
            format!("{}[...]{}", &name[..start], &name[end + 1..]).into()
        }
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::process::pclntab::fixture::{Spec, TEXT, binary};

    fn names(with_lines: bool) -> Vec<Option<Vec<(String, u32)>>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let function = Spec {
            name: "main.Sum[go.shape.int].func1",
            code: &[0x90; 16],
            depths: &[(16, 0)],
            inlined: Some("main.small"),
            ..Spec::default()
        };
        file.write_all(&binary(&[function])).unwrap();
        let found = find(file.path(), &[TEXT + 4, TEXT + 99], with_lines).unwrap();
        let lines = |named: Named| {
            let lines = named.lines.iter();
            lines.map(|it| (it.function.to_string(), it.line)).collect()
        };
        found.into_iter().map(|named| named.map(lines)).collect()
    }

    #[test]
    fn a_generic_function_is_named_as_go_prints_it() {
        let name = ("main.Sum[...].func1".to_owned(), 0);
        assert_eq!(names(false), [Some(vec![name]), None]);
    }

    #[test]
    fn lines_come_with_inlined_calls() {
        let expected = [("main.small", 20), ("main.Sum[...].func1", 10)];
        let expected = expected.map(|(name, line)| (name.to_owned(), line));
        assert_eq!(names(true), [Some(expected.to_vec()), None]);
    }

    #[test]
    fn files_of_other_languages_have_no_names() {
        assert!(find(Path::new("/proc/self/exe"), &[0x1000], false).is_none());
    }
}
