//! Colours on a terminal.

use std::io::{self, IsTerminal};

/// Escape sequences around words; empty when there is no terminal to colour.
#[derive(Clone, Copy)]
pub struct Palette {
    pub bold: &'static str,
    pub green: &'static str,
    pub yellow: &'static str,
    pub red: &'static str,
    pub reset: &'static str,
}

impl Palette {
    /// No escape sequences.
    pub const PLAIN: Self = Self {
        bold: "",
        green: "",
        yellow: "",
        red: "",
        reset: "",
    };
    /// The colours that every terminal has.
    pub const ANSI: Self = Self {
        bold: "\x1b[1m",
        green: "\x1b[32m",
        yellow: "\x1b[33m",
        red: "\x1b[31m",
        reset: "\x1b[0m",
    };

    /// Colours on a terminal, unless `NO_COLOR` (<https://no-color.org>) is set and not empty.
    pub fn of_stdout() -> Self {
        let is_refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stdout().is_terminal() && !is_refused {
            Self::ANSI
        } else {
            Self::PLAIN
        }
    }
}
