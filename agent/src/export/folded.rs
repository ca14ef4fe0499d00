//! Folded stacks: one line of text per distinct stack, `comm;root;…;leaf COUNT`.
//!
//! The first element is the process name, with [`Options::per_thread`] the second one is
//! `thread-name/tid`. Kernel frames end in `_[k]`, inlined ones in `_[i]`, JIT ones in `_[j]`.
//! An inlined kernel function ends in `_[k]`: which side of the kernel's border the time went to
//! matters more than how the compiler laid the code out.
//!
//! Names come from files and processes nobody vouches for, so they are made safe: no element can
//! break a line, add an element, carry a mark it has no right to, or end like a count.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use super::Options;
use crate::model::{Frame, FrameKind, Process, Profile, Thread};

/// What an element of a folded stack is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementKind {
    /// A process or thread name.
    Process,
    /// A function of the kernel, a module or a BPF program.
    Kernel,
    /// A function of unknown language, C or C++.
    Native,
    /// A Rust function.
    Rust,
    /// A Go function.
    Go,
    /// A function inlined into the element before it.
    Inlined,
    /// Code made at run time.
    Jit,
    /// A mark such as `[truncated]`.
    Note,
}

impl From<FrameKind> for ElementKind {
    fn from(kind: FrameKind) -> Self {
        match kind {
            FrameKind::Native => Self::Native,
            FrameKind::Rust => Self::Rust,
            FrameKind::Go => Self::Go,
            FrameKind::Kernel => Self::Kernel,
            FrameKind::Jit => Self::Jit,
            FrameKind::Note => Self::Note,
        }
    }
}

/// The marks at the end of an element.
const MARKS: [(ElementKind, &str); 3] = [
    (ElementKind::Kernel, "_[k]"),
    (ElementKind::Inlined, "_[i]"),
    (ElementKind::Jit, "_[j]"),
];

impl ElementKind {
    /// Splits an element into its name and the kind its mark stands for.
    #[must_use]
    pub fn split_mark(element: &str) -> (&str, Option<Self>) {
        MARKS
            .iter()
            .find_map(|(kind, mark)| Some((element.strip_suffix(mark)?, Some(*kind))))
            .unwrap_or((element, None))
    }

    /// The kind a name without a mark most likely has. Text does not say the language, but the
    /// way Go and Rust write their names mostly gives it away.
    #[must_use]
    pub fn guess(name: &str) -> Self {
        if name.starts_with('[') && name.ends_with(']') {
            Self::Note
        } else if is_go(name) {
            Self::Go
        } else if is_rust(name) {
            Self::Rust
        } else {
            Self::Native
        }
    }

    fn mark(self) -> &'static str {
        MARKS
            .iter()
            .find_map(|(kind, mark)| (*kind == self).then_some(*mark))
            .unwrap_or("")
    }
}

/// Whether a name has a method of a pointer, a known package, or a path before its package.
fn is_go(name: &str) -> bool {
    const PACKAGES: [&str; 5] = ["main.", "runtime.", "sync.", "syscall.", "internal/"];
    let has_path = || match name.rsplit_once('/') {
        Some((_, last)) => last.contains('.') && !name.contains([' ', ':', '+']),
        None => false,
    };
    name.contains(".(*") || PACKAGES.iter().any(|p| name.starts_with(p)) || has_path()
}

/// Whether a name has closures or traits, or a path without the parameters that end C++ names.
fn is_rust(name: &str) -> bool {
    const STD: [&str; 9] = [
        "collections",
        "fs",
        "io",
        "net",
        "panic",
        "rt",
        "sync",
        "sys",
        "thread",
    ];
    let is_trait_method = name.starts_with('<') && name.contains(">::");
    let is_of_core = name.starts_with("core::") || name.starts_with("alloc::");
    if is_of_core || is_trait_method || name.contains("{closure") || name.contains("{impl#") {
        return true;
    }
    match name.strip_prefix("std::") {
        _ if name.contains('(') => false,
        Some(rest) => STD.iter().any(|module| rest.starts_with(module)),
        None => name.contains("::"),
    }
}

/// Folded stacks with their weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Stacks, `root;…;leaf`, with their weights.
    pub stacks: BTreeMap<String, u64>,
    /// What the elements are: more than their text says for those without a mark. An element that
    /// is both a function and a process name counts as a function.
    pub kinds: HashMap<String, ElementKind>,
}

impl Folded {
    /// The elements of one frame as text, `physical;inlined_[i]`, from the names of its functions,
    /// innermost first. Remembers what each element is.
    pub fn frame<'a>(
        &mut self,
        kind: ElementKind,
        names: impl DoubleEndedIterator<Item = &'a str>,
    ) -> String {
        let mut text = String::new();
        for name in names.rev() {
            let kind = match kind {
                kind if text.is_empty() || kind == ElementKind::Kernel => kind,
                _ => ElementKind::Inlined,
            };
            let element = element(name, kind);
            append(&mut text, &element);
            self.kinds.insert(element, kind);
        }
        text
    }

    /// The text of a process or thread name as an element.
    pub fn process(&mut self, name: &str) -> String {
        let element = element(name, ElementKind::Process);
        self.kinds
            .entry(element.clone())
            .or_insert(ElementKind::Process);
        element
    }

    /// Adds weight to a stack.
    pub fn add(&mut self, stack: String, weight: u64) {
        let sum = self.stacks.entry(stack).or_default();
        *sum = sum.saturating_add(weight);
    }

    /// The sum of all weights.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.stacks
            .values()
            .fold(0, |sum, weight| sum.saturating_add(*weight))
    }

    /// The same stacks with weights that add up to about `total`.
    #[must_use]
    pub fn scaled_to(&self, total: u64) -> Self {
        let factor = total as f64 / self.total().max(1) as f64;
        let scale = |weight: &u64| (*weight as f64 * factor).round() as u64;
        let stacks = self.stacks.iter();
        Self {
            stacks: stacks.map(|(s, w)| (s.clone(), scale(w))).collect(),
            kinds: self.kinds.clone(),
        }
    }

    /// Writes one line per stack, sorted by text.
    pub fn write_text(&self, w: &mut dyn Write) -> io::Result<()> {
        for (stack, weight) in &self.stacks {
            writeln!(w, "{stack} {weight}")?;
        }
        Ok(())
    }
}

/// Appends elements to a stack.
pub fn append(stack: &mut String, elements: &str) {
    if !stack.is_empty() && !elements.is_empty() {
        stack.push(';');
    }
    stack.push_str(elements);
}

/// Writes the profile as folded stacks.
pub fn write(profile: &Profile, options: &Options, w: &mut dyn Write) -> io::Result<()> {
    fold(profile, options).write_text(w)
}

/// Folds a profile; weights are numbers of samples.
#[must_use]
pub fn fold(profile: &Profile, options: &Options) -> Folded {
    let mut folded = Folded::default();
    let frames: Vec<String> = profile
        .frames
        .iter()
        .map(|frame| folded.frame(frame.kind.into(), names(frame)))
        .collect();
    let stacks: Vec<String> = profile
        .stacks
        .iter()
        .map(|stack| {
            let mut text = String::new();
            for frame in stack.frames.iter().rev() {
                append(&mut text, &frames[frame.at()]);
            }
            text
        })
        .collect();
    let roots: Vec<String> = profile
        .threads
        .iter()
        .map(|thread| {
            let process = &profile.processes[thread.process.at()];
            root(&mut folded, process, thread, options)
        })
        .collect();
    for sample in &profile.samples {
        let mut stack = roots[sample.thread.at()].clone();
        append(&mut stack, &stacks[sample.stack.at()]);
        folded.add(stack, sample.count());
    }
    folded
}

fn names(frame: &Frame) -> impl DoubleEndedIterator<Item = &str> {
    frame.lines.iter().map(|line| &*line.function)
}

fn root(folded: &mut Folded, process: &Process, thread: &Thread, options: &Options) -> String {
    let mut root = folded.process(&process.name);
    if options.per_thread {
        let thread = folded.process(&format!("{}/{}", thread.name, thread.tid));
        append(&mut root, &thread);
    }
    root
}

/// A name as a safe element with the mark of its kind.
fn element(name: &str, kind: ElementKind) -> String {
    let mut safe = safe_text(name);
    if safe.is_empty() {
        safe.push_str("[unknown]");
    }
    // Readers skip a line that begins with a hash as a comment.
    if safe.starts_with('#') {
        safe.replace_range(..1, "_");
    }
    // Readers take a number after the last blank for a count, whatever comes after it.
    if let Some(blank) = safe.rfind(' ')
        && safe[blank + 1..]
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        safe.replace_range(blank..=blank, "_");
    }
    if let (name, Some(_)) = ElementKind::split_mark(&safe) {
        let (at, letter) = (name.len(), &safe[name.len() + 2..name.len() + 3]);
        let defused = format!("_({letter})");
        safe.replace_range(at.., &defused);
    }
    safe.push_str(kind.mark());
    safe
}

/// Text on one line, without the separator of stacks and without characters that XML forbids or
/// that change the order in which text is shown.
#[must_use]
pub fn safe_text(text: &str) -> String {
    text.trim()
        .chars()
        .map(|c| match c {
            ';' => ':',
            c if c.is_whitespace() => ' ',
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => '?',
            c if c.is_control() => '?',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixture;

    fn text(profile: &Profile, per_thread: bool) -> String {
        let options = Options {
            per_thread,
            ..Options::default()
        };
        let mut out = Vec::new();
        write(profile, &options, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_stack_is_one_line_with_its_marks() {
        assert_eq!(
            text(&fixture::mixed(), false),
            "\
api;[no unwind table];libc.so.6+0x29d90 2
api;_start;main;api::serve;core::iter::fold_[i];api::parse_[i] 7
api;_start;main;api::serve;do_syscall_64_[k];ksys_read_[k];vfs_read_[k] 3
gosrv;runtime.main;main.main 5
node;_start;LazyCompile:~render app.js:10_[j] 4
"
        );
    }

    #[test]
    fn threads_get_towers_of_their_own_on_request() {
        let text = text(&fixture::mixed(), true);
        assert!(text.starts_with("api;api/100;"), "{text}");
        assert!(text.contains("\napi;worker 1/101;_start;main;"), "{text}");
    }

    #[test]
    fn names_cannot_break_the_format() {
        let check = |name: &str, expected: &str| {
            assert_eq!(element(name, ElementKind::Native), expected, "{name:?}");
        };
        check("plain", "plain");
        check("<[u8; 4] as Hash>::hash", "<[u8: 4] as Hash>::hash");
        check("a\nb\tc\u{2028}d", "a b c d");
        check("bell\u{7}\u{202e}evil\u{ffff}", "bell??evil?");
        check("", "[unknown]");
        check(" \n ", "[unknown]");
        check("worker 12", "worker_12");
        check("worker 1.5", "worker_1.5");
        check("worker 12a", "worker 12a");
        check("# comment", "_ comment");
        check("fake_[k]", "fake_(k)");
        check("_[i]", "_(i)");
        check("é_[é]", "é_[é]");
        assert_eq!(element("f_[k]", ElementKind::Kernel), "f_(k)_[k]");
    }

    #[test]
    fn inlined_kernel_functions_stay_kernel() {
        let mut folded = Folded::default();
        let frame = folded.frame(ElementKind::Kernel, ["inner", "outer"].into_iter());
        assert_eq!(frame, "outer_[k];inner_[k]");
        let frame = folded.frame(ElementKind::Rust, ["inner", "outer"].into_iter());
        assert_eq!(frame, "outer;inner_[i]");
    }

    #[test]
    fn languages_are_guessed_from_names() {
        let check = |kind, names: &[&str]| {
            for name in names {
                assert_eq!(ElementKind::guess(name), kind, "{name}");
            }
        };
        check(
            ElementKind::Go,
            &[
                "main.main",
                "net/http.(*conn).serve",
                "github.com/a/b.Run",
                "runtime.goexit.abi0",
            ],
        );
        check(
            ElementKind::Rust,
            &[
                "core::ptr::drop_in_place<alloc::string::String>",
                "<alloc::vec::Vec<T> as core::ops::Drop>::drop",
                "app::main::{{closure}}",
                "serde_json::de::Deserializer<R>::parse_value",
                "std::io::Write::write_all",
            ],
        );
        check(
            ElementKind::Native,
            &[
                "main",
                "foo.part.0",
                "std::vector<int>::push_back(int&&)",
                "libc.so.6+0x29d90",
                "operator<(A const&, B const&)",
                "run()::{lambda(int)#1}::operator()(int) const",
                "rocksdb::DBImpl::Get(rocksdb::Slice const&)",
                "std::thread::_State_impl<int>::_M_run()",
                "std::vector<int>::push_back",
            ],
        );
        check(ElementKind::Note, &["[truncated]"]);
    }
}
