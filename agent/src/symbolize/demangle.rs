//! Names as people write them, from names as linkers do.

use std::borrow::Cow;

/// The language a symbol's mangling gives away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Rust, old or new mangling.
    Rust,
    /// C++, or anything else that mangles as it does.
    Cpp,
    /// Not mangled.
    Unknown,
}

/// Names longer than this are not demangled: their demangled form can be exponentially longer.
const MAX_MANGLED_BYTES: usize = 4096;
/// Demangled names are cut here.
const MAX_NAME_BYTES: usize = 8192;

/// Demangles a symbol; one that is not mangled, or wrongly, is returned as it is.
pub fn demangle(symbol: &str) -> (Cow<'_, str>, Language) {
    if symbol.len() > MAX_MANGLED_BYTES {
        return (Cow::Borrowed(cut(symbol)), Language::Unknown);
    }
    if let Ok(name) = rustc_demangle::try_demangle(symbol) {
        // The alternate form leaves the hash out.
        return (
            Cow::Owned(cut(&format!("{name:#}")).to_owned()),
            Language::Rust,
        );
    }
    if symbol.starts_with("_Z")
        && let Ok(parsed) = cpp_demangle::Symbol::new(symbol)
        && let Ok(name) = parsed.demangle()
    {
        return (Cow::Owned(cut(&name).to_owned()), Language::Cpp);
    }
    (Cow::Borrowed(symbol), Language::Unknown)
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mangling_is_read() {
        for (symbol, name, language) in [
            (
                "_ZN4core3fmt5write17h0123456789abcdefE",
                "core::fmt::write",
                Language::Rust,
            ),
            ("_RNvC6_123foo3bar", "123foo::bar", Language::Rust),
            (
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back(int const&)",
                Language::Cpp,
            ),
            ("main", "main", Language::Unknown),
            ("_Znonsense", "_Znonsense", Language::Unknown),
            ("runtime.goexit", "runtime.goexit", Language::Unknown),
        ] {
            assert_eq!(
                demangle(symbol),
                (Cow::Borrowed(name), language),
                "{symbol}"
            );
        }
    }

    #[test]
    fn endless_names_are_cut() {
        assert_eq!(demangle(&"é".repeat(20_000)).0.len(), MAX_NAME_BYTES);
    }
}
