//! A source file as tokens: enough of Rust's grammar to see which paths a file names.

use std::path::Path;

/// A source file.
pub struct Source<'a> {
    /// Modules from the crate root to the file: `["export", "folded"]`.
    module: Vec<&'a str>,
    tokens: Vec<Token<'a>>,
}

/// A word, `::` or a single other character.
struct Token<'a> {
    text: &'a str,
    line: usize,
    /// How many inline modules (`mod tests { … }`) it is in.
    inline_depth: usize,
    /// Whether one of them, or one that the file is in, is called `tests`.
    is_test: bool,
}

impl<'a> Source<'a> {
    /// Reads a file, whose `path` is relative to the crate's `src`.
    pub fn new(path: &'a Path, text: &'a str) -> Self {
        let stem = path.with_extension("");
        let mut module: Vec<&str> = path
            .iter()
            .filter_map(|name| name.to_str())
            .map(|name| name.strip_suffix(".rs").unwrap_or(name))
            .collect();
        if stem.ends_with("mod") || ["lib", "main"].iter().any(|root| stem == Path::new(root)) {
            module.pop();
        }
        let mut tokens = tokenize(text);
        mark_inline_modules(&mut tokens);
        if module.contains(&"tests") {
            tokens.iter_mut().for_each(|token| token.is_test = true);
        }
        Self { module, tokens }
    }

    /// The top module the file belongs to; `None` for the crate's roots.
    pub fn layer(&self) -> Option<&'a str> {
        self.module.first().copied()
    }

    /// Each `crate::NAME` the file names, with its line; also in groups, and by `super`.
    pub fn crate_modules(&self) -> Vec<(usize, &'a str)> {
        let mut found = Vec::new();
        for start in 0..self.tokens.len() {
            if let Some(after) = self.skip_path_to_root(start) {
                self.names_at(after, &mut found);
            }
        }
        found
    }

    /// The lines where a crate is named, outside of tests.
    pub fn uses_of_crate(&self, name: &str) -> Vec<usize> {
        let is_use = |at: usize| {
            let global = self.is(at.wrapping_sub(1), "::");
            let before = at.wrapping_sub(if global { 2 } else { 1 });
            let starts_path = match self.tokens.get(before) {
                // `a::aya` and `x.aya` are names of something else; `use ::aya` is not.
                Some(token) if global => !is_word(token.text) || token.text == "use",
                Some(token) => token.text != ".",
                None => true,
            };
            let is_import = matches!(self.text(before), Some("use" | "crate"));
            starts_path && (self.is(at + 1, "::") || is_import)
        };
        (0..self.tokens.len())
            .filter(|at| self.is(*at, name) && !self.tokens[*at].is_test && is_use(*at))
            .map(|at| self.tokens[at].line)
            .collect()
    }

    /// The lines where the tokens of `pattern` follow each other, outside of tests.
    pub fn occurrences(&self, pattern: &str) -> Vec<usize> {
        let pattern = tokenize(pattern);
        self.tokens
            .windows(pattern.len())
            .filter(|window| !window[0].is_test)
            .filter(|window| window.iter().zip(&pattern).all(|(a, b)| a.text == b.text))
            .map(|window| window[0].line)
            .collect()
    }

    fn text(&self, at: usize) -> Option<&'a str> {
        self.tokens.get(at).map(|token| token.text)
    }

    fn is(&self, at: usize, text: &str) -> bool {
        self.text(at) == Some(text)
    }

    /// For a path that starts at `start` and leads to the crate's root: where it goes on.
    fn skip_path_to_root(&self, start: usize) -> Option<usize> {
        if self.is(start.wrapping_sub(1), "::") {
            return None;
        }
        if self.is(start, "crate") && self.is(start + 1, "::") {
            return Some(start + 2);
        }
        let mut at = start;
        let mut ups = 0;
        while self.is(at, "super") && self.is(at + 1, "::") {
            ups += 1;
            at += 2;
        }
        let depth = self.module.len() + self.tokens[start].inline_depth;
        (ups > 0 && ups == depth).then_some(at)
    }

    /// The name at `at`, or the first name of each path of the group that opens there.
    fn names_at(&self, at: usize, found: &mut Vec<(usize, &'a str)>) {
        if !self.is(at, "{") {
            let name = self.tokens.get(at).filter(|token| is_word(token.text));
            found.extend(name.map(|token| (token.line, token.text)));
            return;
        }
        let mut depth = 0;
        for (index, token) in self.tokens.iter().enumerate().skip(at) {
            match token.text {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
            let starts_path = self.is(index - 1, "{") || self.is(index - 1, ",");
            if depth == 1 && starts_path && is_word(token.text) {
                found.push((token.line, token.text));
            }
        }
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphanumeric() || first == '_')
}

/// Cuts code into tokens, without comments, literals and lifetimes.
fn tokenize(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let (length, is_token) = measure(rest, first);
        let (token, after) = rest.split_at(length);
        if is_token {
            tokens.push(Token {
                text: token,
                line,
                inline_depth: 0,
                is_test: false,
            });
        }
        line += token.matches('\n').count();
        rest = after;
    }
    tokens
}

/// Length of what `rest` begins with, and whether it is a token.
fn measure(rest: &str, first: char) -> (usize, bool) {
    let word = || {
        rest.find(|next: char| !(next.is_alphanumeric() || next == '_'))
            .unwrap_or(rest.len())
    };
    if rest.starts_with("//") {
        (rest.find('\n').unwrap_or(rest.len()), false)
    } else if rest.starts_with("/*") {
        (block_comment(rest), false)
    } else if let Some(length) = string(rest) {
        (length, false)
    } else if first == '\'' {
        (char_or_lifetime(rest), false)
    } else if is_word(rest) {
        (word(), true)
    } else if rest.starts_with("::") {
        (2, true)
    } else {
        (first.len_utf8(), !first.is_whitespace())
    }
}

/// Length of a block comment; they nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of a string literal of any kind, if `rest` begins with one.
fn string(rest: &str) -> Option<usize> {
    let body = rest.trim_start_matches(['b', 'c']);
    if rest.len() - body.len() > 1 {
        return None;
    }
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let inside = raw[hashes..].strip_prefix('"')?;
        let close = format!("\"{}", "#".repeat(hashes));
        let end = inside
            .find(&close)
            .map_or(inside.len(), |at| at + close.len());
        return Some(rest.len() - inside.len() + end);
    }
    let inside = body.strip_prefix('"')?;
    Some(rest.len() - inside.len() + end_of_literal(inside, '"'))
}

/// Length of `'x'`, `'\n'` or `'lifetime`.
fn char_or_lifetime(rest: &str) -> usize {
    let inside = &rest[1..];
    let mut chars = inside.chars();
    match (chars.next(), chars.next()) {
        (Some('\\'), _) => 1 + end_of_literal(inside, '\''),
        (Some(first), Some('\'')) => first.len_utf8() + 2,
        _ => 1,
    }
}

/// Length up to and with the closing quote, which may be escaped on the way.
fn end_of_literal(inside: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, next) in inside.char_indices() {
        if next == quote && !is_escaped {
            return at + quote.len_utf8();
        }
        is_escaped = next == '\\' && !is_escaped;
    }
    inside.len()
}

/// Tells each token which inline modules it is in.
fn mark_inline_modules(tokens: &mut [Token]) {
    let mut braces = 0;
    // For each open inline module: the brace depth outside of it, and whether it holds tests.
    let mut open: Vec<(usize, bool)> = Vec::new();
    for at in 0..tokens.len() {
        match tokens[at].text {
            "{" => {
                if at >= 2 && tokens[at - 2].text == "mod" {
                    open.push((braces, tokens[at - 1].text == "tests"));
                }
                braces += 1;
            }
            "}" => {
                braces = braces.saturating_sub(1);
                open.pop_if(|(outside, _)| *outside == braces);
            }
            _ => {}
        }
        tokens[at].inline_depth = open.len();
        tokens[at].is_test = open.iter().any(|(_, is_test)| *is_test);
    }
}
