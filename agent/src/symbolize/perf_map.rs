//! Perf maps: the text files `/tmp/perf-PID.map` in which JIT compilers name their code.
//!
//! Format (tools/perf/Documentation/jit-interface.txt): one line `START SIZE name` per function,
//! numbers in hexadecimal, names up to the end of the line. The file grows while the process lives,
//! and code that is compiled again into the same memory is simply written again: a later line
//! counts for every address it covers, and an earlier one for what is left of it.
//!
//! The file is written by the process that is being watched, so every line of it may be a lie made
//! to hurt: what it can make us spend is bounded by the constants below.

use std::collections::BinaryHeap;
use std::fmt;
use std::io::{self, Read};

use crate::model::RuntimeAddr;

/// Bytes read of one file, in all. Node writes some hundred bytes per function, so this is more
/// than a million functions.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of names kept.
const NAME_BYTES_MAX: usize = 64 << 20;
/// Pieces of address space kept: 16 bytes each.
const PIECES_MAX: usize = 1 << 20;
/// Lines, and bytes of their names, that wait to be merged: in a file of years, most lines have
/// been overwritten by later ones and need no room in the end.
const FRESH_LINES_MAX: usize = PIECES_MAX / 4;
const FRESH_NAME_BYTES_MAX: usize = NAME_BYTES_MAX / 4;
/// Bytes of one line; template names reach some thousand.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Garbage among names that is not worth a collection.
const NAME_BYTES_TIDY: usize = 1 << 20;
/// Names end with this, which no name contains.
const NAME_END: char = '\n';

/// Names of code that was made at run time, by address.
#[derive(Debug, Default)]
pub struct PerfMap {
    /// Disjoint, ascending.
    pieces: Vec<Piece>,
    /// All names, each followed by [`NAME_END`]; a later line's name lies behind an earlier one's.
    names: String,
    /// Size of `names` at which to throw out what no piece uses any more.
    tidy_at_bytes: usize,
    /// Parsed, but not yet among `pieces`; in the order of the file.
    fresh: Vec<Piece>,
    /// Size of `names` without those of `fresh`.
    settled_name_bytes: usize,
    /// The beginning of a line whose end has not been written yet.
    pending: Vec<u8>,
    /// Whether the rest of the current line is to be passed over.
    is_skipping: bool,
    taken_bytes: u64,
    refused: Refused,
}

/// What was not taken from a perf map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Lines that are no `START SIZE name`, or that cover nothing or the impossible.
    pub malformed_lines: u64,
    /// Lines that are too long to be a function.
    pub long_lines: u64,
    /// Lines for which there was no room.
    pub surplus_lines: u64,
    /// Whether the file is longer than what is read of it.
    pub is_cut: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.malformed_lines, "malformed lines"),
            (self.long_lines, "lines that are too long"),
            (self.surplus_lines, "lines that are too many"),
        ];
        let mut separator = "";
        for (count, what) in counts.into_iter().filter(|&(count, _)| count > 0) {
            write!(out, "{separator}{count} {what}")?;
            separator = ", ";
        }
        if self.is_cut {
            write!(out, "{separator}more than {} MiB", FILE_BYTES_MAX >> 20)?;
        }
        Ok(())
    }
}

/// A range of addresses with one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    size: u32,
    /// Offset of the name in [`PerfMap::names`]: the larger, the later the line.
    name: u32,
}
const _: () = assert!(size_of::<Piece>() == 16);
const _: () = assert!(NAME_BYTES_MAX < u32::MAX as usize);

impl Piece {
    fn end(self) -> u64 {
        self.start + u64::from(self.size)
    }
}

impl PerfMap {
    /// Reads a whole perf map. A last line without its end is kept back until more is read.
    ///
    /// # Errors
    ///
    /// What the reader returned.
    pub fn parse(reader: impl Read) -> io::Result<Self> {
        let mut map = Self::default();
        map.read_more(reader)?;
        Ok(map)
    }

    /// Reads on to the end: what has been appended to the file since the last time. What came
    /// before an error counts.
    ///
    /// # Errors
    ///
    /// What the reader returned.
    pub fn read_more(&mut self, mut reader: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        let result = loop {
            if self.refused.is_cut {
                break Ok(());
            }
            match reader.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(count) => self.take(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.settle();
        result
    }

    /// Adds newly appended bytes, wherever they begin and end.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.take(bytes);
        self.settle();
    }

    /// The name of the code at an address.
    #[must_use]
    pub fn find(&self, addr: RuntimeAddr) -> Option<&str> {
        let after = self.pieces.partition_point(|piece| piece.start <= addr.0);
        let piece = self.pieces[..after].last()?;
        (addr.0 < piece.end()).then(|| self.name(*piece))
    }

    /// How many ranges have a name.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether nothing has a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What was not taken.
    #[must_use]
    pub fn refused(&self) -> Refused {
        self.refused
    }

    fn name(&self, piece: Piece) -> &str {
        let rest = &self.names[piece.name as usize..];
        rest.split(NAME_END).next().unwrap_or_default()
    }

    /// Splits bytes into lines and parses the complete ones.
    fn take(&mut self, mut bytes: &[u8]) {
        let room = FILE_BYTES_MAX - self.taken_bytes;
        if bytes.len() as u64 > room {
            bytes = &bytes[..room as usize];
            self.refused.is_cut = true;
        }
        self.taken_bytes += bytes.len() as u64;

        for chunk in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (part, is_complete) = match chunk.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (chunk, false),
            };
            self.take_part(part, is_complete);
        }
    }

    fn take_part(&mut self, part: &[u8], is_complete: bool) {
        if !self.is_skipping && self.pending.len() + part.len() > LINE_BYTES_MAX {
            self.refused.long_lines += 1;
            self.is_skipping = true;
            self.pending.clear();
        }
        if self.is_skipping {
            self.is_skipping = !is_complete;
        } else if !is_complete {
            self.pending.extend_from_slice(part);
        } else if self.pending.is_empty() {
            self.take_line(part);
        } else {
            let mut line = std::mem::take(&mut self.pending);
            line.extend_from_slice(part);
            self.take_line(&line);
        }
    }

    fn take_line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        if line.trim().is_empty() {
            return;
        }
        let Some((start, size, name)) = parse_line(&line) else {
            self.refused.malformed_lines += 1;
            return;
        };
        if self.fresh.len() >= FRESH_LINES_MAX
            || self.names.len() - self.settled_name_bytes >= FRESH_NAME_BYTES_MAX
        {
            self.settle();
        }
        if self.pieces.len() + self.fresh.len() >= PIECES_MAX
            || self.names.len() + name.len() >= NAME_BYTES_MAX
        {
            self.refused.surplus_lines += 1;
            return;
        }
        self.fresh.push(Piece {
            start,
            size,
            name: self.names.len() as u32,
        });
        // Names end up on terminals, where control characters could do anything.
        let printable = name.replace(char::is_control, "\u{fffd}");
        self.names.push_str(&printable);
        self.names.push(NAME_END);
    }

    /// Makes fresh pieces count.
    fn settle(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.pieces);
        all.append(&mut self.fresh);
        self.pieces = flatten(all);
        // Splitting can double them; cutting the highest is as good as any other choice.
        let surplus = self.pieces.len().saturating_sub(PIECES_MAX);
        self.pieces.truncate(PIECES_MAX);
        self.refused.surplus_lines += surplus as u64;
        self.pieces.shrink_to_fit();
        self.fresh.shrink_to_fit();
        self.settled_name_bytes = self.names.len();
        if self.names.len() >= self.tidy_at_bytes.max(NAME_BYTES_TIDY) {
            self.tidy();
        }
    }

    /// Throws out the names of code that has been overwritten.
    fn tidy(&mut self) {
        let mut names = String::new();
        let mut pieces = std::mem::take(&mut self.pieces);
        for piece in &mut pieces {
            let name = self.name(*piece);
            piece.name = names.len() as u32;
            names.push_str(name);
            names.push(NAME_END);
        }
        self.pieces = pieces;
        self.tidy_at_bytes = (names.len() * 2).min(NAME_BYTES_MAX / 4 * 3);
        self.settled_name_bytes = names.len();
        self.names = names;
    }
}

/// Start, size and name of a line.
fn parse_line(line: &str) -> Option<(u64, u32, &str)> {
    let (start, rest) = line.trim_start().split_once([' ', '\t'])?;
    let (size, name) = rest.trim_start().split_once([' ', '\t'])?;
    let name = name.trim();
    let start = parse_hex(start)?;
    let size = u32::try_from(parse_hex(size)?).ok()?;
    start.checked_add(u64::from(size))?;
    (size > 0 && !name.is_empty()).then_some((start, size, name))
}

fn parse_hex(text: &str) -> Option<u64> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    // `from_str_radix` would take a sign.
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// Pieces that overlap become pieces that do not: each address belongs to the piece with the
/// latest name among those that cover it.
///
/// A sweep over the address space with the pieces that cover the current address in a heap, latest
/// first: n log n, however they overlap.
fn flatten(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_by_key(|piece| piece.start);
    let mut flat: Vec<Piece> = Vec::with_capacity(pieces.len());
    let mut covering = BinaryHeap::new();
    let mut at = 0;
    for piece in pieces {
        cover(&mut flat, &mut covering, &mut at, piece.start);
        at = piece.start;
        covering.push((piece.name, piece.end()));
    }
    cover(&mut flat, &mut covering, &mut at, u64::MAX);
    flat
}

/// Writes the pieces from `at` up to `until`, as far as anything covers them.
fn cover(flat: &mut Vec<Piece>, covering: &mut BinaryHeap<(u32, u64)>, at: &mut u64, until: u64) {
    while *at < until {
        let Some(&(name, end)) = covering.peek() else {
            return;
        };
        if end <= *at {
            covering.pop();
            continue;
        }
        let end = end.min(until);
        push(flat, *at, end, name);
        *at = end;
    }
}

/// Adds a piece, or lengthens the last one if it is the same code.
fn push(flat: &mut Vec<Piece>, start: u64, end: u64, name: u32) {
    let start = match flat.last() {
        Some(last) if last.end() == start && last.name == name => {
            let start = last.start;
            flat.pop();
            start
        }
        _ => start,
    };
    flat.push(Piece {
        start,
        // Part of a line, whose size fits.
        size: (end - start) as u32,
        name,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> PerfMap {
        PerfMap::parse(text.as_bytes()).expect("a slice is readable")
    }

    fn check(text: &str, addr: u64, expected: Option<&str>) {
        assert_eq!(
            map(text).find(RuntimeAddr(addr)),
            expected,
            "{text:?} {addr:#x}"
        );
    }

    #[test]
    fn a_name_counts_from_start_to_before_end() {
        let text = "1000 10 first\n1010 10 second\n2000 1 third\n";
        check(text, 0xfff, None);
        check(text, 0x1000, Some("first"));
        check(text, 0x100f, Some("first"));
        check(text, 0x1010, Some("second"));
        check(text, 0x1020, None);
        check(text, 0x2000, Some("third"));
        check(text, u64::MAX, None);
    }

    #[test]
    fn lines_of_all_known_writers_are_read() {
        check(
            "0x7f00 0x20 LazyCompile:~a b.js:1\n",
            0x7f00,
            Some("LazyCompile:~a b.js:1"),
        );
        check("0X7F00 20 x\r\n", 0x7f00, Some("x"));
        check("7f00\t20\tx\n", 0x7f00, Some("x"));
        check(
            "  7f00  20   java.lang.String::<init>  \n",
            0x7f00,
            Some("java.lang.String::<init>"),
        );
        check("7f00 20 vector<int, 3>\n", 0x7f00, Some("vector<int, 3>"));
    }

    #[test]
    fn names_that_could_harm_a_terminal_are_defused() {
        check("10 1 a\x1b[2Jb\n", 0x10, Some("a\u{fffd}[2Jb"));
        let map = PerfMap::parse(&b"10 1 \xff\xfe\n"[..]).expect("readable");
        assert_eq!(map.find(RuntimeAddr(0x10)), Some("\u{fffd}\u{fffd}"));
    }

    #[test]
    fn a_later_line_wins_where_it_lies() {
        let text = "1000 100 old\n1040 20 new\n";
        check(text, 0x103f, Some("old"));
        check(text, 0x1040, Some("new"));
        check(text, 0x105f, Some("new"));
        check(text, 0x1060, Some("old"));
        check("1040 20 old\n1000 100 new\n", 0x1050, Some("new"));
        assert_eq!(map("1000 100 a\n1010 10 b\n1000 100 c\n").len(), 1);
    }

    #[test]
    fn a_last_line_without_its_end_waits_for_it() {
        let mut map = map("10 10 complete\n20 10 inc");
        assert_eq!(map.find(RuntimeAddr(0x20)), None);
        map.extend(b"omplete");
        assert_eq!(map.find(RuntimeAddr(0x20)), None);
        map.extend(b"\n30 10 x\n");
        assert_eq!(map.find(RuntimeAddr(0x20)), Some("incomplete"));
        assert_eq!(map.find(RuntimeAddr(0x30)), Some("x"));
        assert_eq!(map.refused(), Refused::default());
    }

    #[test]
    fn nonsense_is_counted_and_passed_over() {
        let lines = [
            "name",
            "10",
            "10 10",
            "10 10 ",
            "xyz 10 a",
            "10 -1 a",
            "+10 10 a",
            "10 0 a",
            "0x 10 a",
            "10 100000000 a",
            "fffffffffffffff0 20 a",
            "11112222333344445 10 a",
        ];
        let map = map(&(lines.join("\n") + "\n\n40 1 good\n"));
        assert_eq!(map.refused().malformed_lines, lines.len() as u64);
        assert_eq!(map.find(RuntimeAddr(0x40)), Some("good"));
        assert_eq!(map.len(), 1);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut map = PerfMap::default();
        for _ in 0..100 {
            map.extend(&[b'a'; 4096]);
        }
        assert!(map.pending.capacity() <= 2 * LINE_BYTES_MAX);
        assert_eq!(map.refused().long_lines, 1);
        map.extend(b"\n10 1 x\n");
        assert_eq!(map.find(RuntimeAddr(0x10)), Some("x"));
    }

    #[test]
    fn a_file_without_end_is_cut() {
        let map = PerfMap::parse(io::repeat(b'a')).expect("readable");
        assert!(map.refused().is_cut);
        assert_eq!(map.taken_bytes, FILE_BYTES_MAX);
    }

    #[test]
    fn the_latest_lines_of_a_long_file_are_kept() {
        let mut text = String::new();
        for line in 0..PIECES_MAX + FRESH_LINES_MAX {
            text += &format!("{:x} 10 {line}\n", (line % 1000) * 0x10);
        }
        let map = map(&text);
        assert_eq!(map.refused(), Refused::default());
        assert_eq!(map.len(), 1000);
        let last = (PIECES_MAX + FRESH_LINES_MAX - 1).to_string();
        let addr = (PIECES_MAX + FRESH_LINES_MAX - 1) % 1000 * 0x10;
        assert_eq!(map.find(RuntimeAddr(addr as u64)), Some(last.as_str()));
    }

    #[test]
    fn pieces_beyond_the_limit_are_counted() {
        let mut map = PerfMap::default();
        let mut text = String::new();
        for index in 0..PIECES_MAX + 10 {
            text += &format!("{:x} 1 a\n", index * 2);
        }
        map.extend(text.as_bytes());
        assert_eq!(map.len(), PIECES_MAX);
        assert_eq!(map.refused().surplus_lines, 10);
    }

    #[test]
    fn recompiling_for_ever_keeps_memory_bounded() {
        let mut map = PerfMap::default();
        for round in 0..200 {
            let mut text = String::new();
            for function in 0..100_u64 {
                let name = format!("function_{function}_{}", "x".repeat(200));
                text += &format!("{:x} 40 {name}_{round}\n", 0x1000 + function * 0x40);
            }
            map.extend(text.as_bytes());
        }
        assert_eq!(map.len(), 100);
        assert!(map.names.len() < 2 * NAME_BYTES_TIDY);
        let name = map.find(RuntimeAddr(0x1041)).expect("named");
        assert!(name.starts_with("function_1_") && name.ends_with("_199"));
    }

    /// xorshift64: the same numbers in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    #[test]
    fn any_lines_in_any_pieces_name_the_latest_that_covers() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..300 {
            let lines: Vec<(u64, u64)> = (0..random.below(40))
                .map(|_| (random.below(100), random.below(30)))
                .collect();
            let text: String = (lines.iter().enumerate())
                .map(|(index, (start, size))| format!("{start:x} {size:x} name {index}\n"))
                .collect();

            let mut map = PerfMap::default();
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(1 + random.below(rest.len() as u64) as usize);
                map.extend(now);
                rest = later;
                if random.below(4) == 0 {
                    map.tidy();
                }
            }
            for addr in 0..140 {
                let latest = lines
                    .iter()
                    .rposition(|(start, size)| (*start..start + size).contains(&addr));
                let expected = latest.map(|index| format!("name {index}"));
                let found = map.find(RuntimeAddr(addr));
                assert_eq!(
                    found,
                    expected.as_deref(),
                    "round {round}, {addr:#x}\n{text}"
                );
            }
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut random = Random(42);
        for _ in 0..2000 {
            let alphabet = b"0123456789abcfx -\n\t\r\xff\xc3g";
            let bytes: Vec<u8> = (0..random.below(200))
                .map(|_| alphabet[random.below(alphabet.len() as u64) as usize])
                .collect();
            let map = PerfMap::parse(&bytes[..]).expect("readable");
            let mut pieces = map.pieces.windows(2);
            assert!(pieces.all(|pair| pair[0].end() <= pair[1].start));
        }
    }

    #[test]
    fn what_was_refused_is_told() {
        let check = |refused: Refused, expected| assert_eq!(refused.to_string(), expected);
        let refused = Refused {
            malformed_lines: 3,
            surplus_lines: 1,
            ..Refused::default()
        };
        check(refused, "3 malformed lines, 1 lines that are too many");
        let refused = Refused {
            is_cut: true,
            ..Refused::default()
        };
        check(refused, "more than 256 MiB");
    }
}
