//! From rows to the words that the kernel side searches, see `hotspan_abi::unwind`.

use std::ops::Range;

use hotspan_abi::unwind::{MAX_TABLE_WORDS, PAGE_BYTES, Rule, WideRule, row, row_addr, row_rule};

use super::{Rows, TableRule};

/// Code that has no rule needs no table, nor does code that follows frame pointers: that is what is
/// done without one. So much of it in one piece is left out: its page index would take 16 KiB.
const MIN_LEFT_OUT_BYTES: u64 = 1 << 20;
/// Text of a segment that is taken for code: 4 GiB, more than relative calls can cross.
const MAX_TEXT_BYTES: u64 = 1 << 32;
/// Pages of one table.
const MAX_PAGES: u64 = MAX_TABLE_WORDS as u64;

/// The table of one piece of text, before it has a place among the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// ELF address of the first page.
    pub pages_start: u64,
    /// How many pages there are.
    pub page_count: u32,
    /// The page index, relative to this table's own first word, then the rows. Wide rules are
    /// positions in `wide`.
    pub words: Vec<u32>,
    /// Wide rules that rows of this table refer to.
    pub wide: Vec<WideRule>,
    /// Where in `words` rows with a wide rule are.
    pub(super) wide_rows: Vec<u32>,
}

impl Table {
    /// How many rows there are.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.words.len() - self.page_count as usize - 1
    }

    /// Whether the table is one that [`build`] could have made, as far as reading it goes: nothing in
    /// it points out of it.
    pub(super) fn is_sound(&self) -> bool {
        let (pages, words) = (self.page_count as usize, self.words.len());
        let Some(index) = self.words.get(..=pages) else {
            return false;
        };
        let is_row = |&row: &u32| row as usize > pages && (row as usize) < words;
        let is_wide = |&at: &u32| {
            let word = self.words.get(at as usize).filter(|_| is_row(&at));
            word.is_some_and(|&word| {
                let rule = row_rule(word);
                rule.kind() == Rule::WIDE && (rule.wide_index() as usize) < self.wide.len()
            })
        };
        words <= MAX_TABLE_WORDS
            && u64::from(self.page_count) <= MAX_PAGES
            && index
                .iter()
                .all(|&row| row as usize > pages && row as usize <= words)
            && index.is_sorted()
            && self.wide_rows.iter().all(is_wide)
    }

    /// Gives the table its place: index words count from the start of all tables, where this one
    /// begins at `base`, and wide rules are those that `wide` puts in place of positions in
    /// [`Table::wide`]; where that is `None`, rows have no rule.
    #[must_use]
    pub fn place(mut self, base: u32, wide: impl Fn(u32) -> Option<Rule>) -> Vec<u32> {
        for index in &mut self.words[..=self.page_count as usize] {
            *index += base;
        }
        for &position in &self.wide_rows {
            let word = &mut self.words[position as usize];
            let rule = wide(row_rule(*word).wide_index()).unwrap_or(Rule::NONE);
            *word = row(row_addr(*word).into(), rule);
        }
        self.words
    }

    /// What the kernel side finds for an address, with wide rules as positions in [`Table::wide`].
    #[must_use]
    pub fn lookup(&self, addr: u64) -> TableRule {
        let page = addr.wrapping_sub(self.pages_start) / PAGE_BYTES;
        if page >= self.page_count.into() {
            return TableRule::NONE;
        }
        let page = page as usize;
        let (first, end) = (self.words[page] as usize, self.words[page + 1] as usize);
        let low = (addr % PAGE_BYTES) as u32;
        let behind = self.words[first..end].partition_point(|&word| row_addr(word) <= low);
        let rule = row_rule(self.words[first + behind - 1]);
        match rule.kind() {
            Rule::WIDE => TableRule::Wide(rule.wide_index()),
            _ => TableRule::Short(rule),
        }
    }
}

/// The pieces of an executable segment that need a table each, ascending. What lies between them is
/// mapped without one.
#[must_use]
pub fn pieces(rows: &Rows, text: Range<u64>) -> Vec<Range<u64>> {
    let described = described(rows, text).into_iter();
    described.flat_map(|piece| cut(rows, piece)).collect()
}

/// Cuts a piece between pages, so that no table is longer than [`MAX_TABLE_WORDS`]; a piece that cannot
/// be code has none.
fn cut(rows: &Rows, piece: Range<u64>) -> Vec<Range<u64>> {
    if piece.end - piece.start > MAX_TEXT_BYTES {
        return Vec::new();
    }
    let mut cuts = Vec::new();
    let mut start = piece.start;
    while start < piece.end {
        let first_page = start & !(PAGE_BYTES - 1);
        let end_of = |pages: u64| {
            let bytes = pages.saturating_mul(PAGE_BYTES);
            first_page.saturating_add(bytes).min(piece.end)
        };
        // A page has as many rows as bytes at most, so one always fits.
        let (mut fits, mut too_many) = (1, (piece.end - first_page).div_ceil(PAGE_BYTES) + 1);
        while fits + 1 < too_many {
            let middle = fits.midpoint(too_many);
            if words_of(rows, start..end_of(middle)) <= MAX_TABLE_WORDS as u64 {
                fits = middle;
            } else {
                too_many = middle;
            }
        }
        cuts.push(start..end_of(fits));
        start = end_of(fits);
    }
    cuts
}

/// Words of the table for a piece of text.
fn words_of(rows: &Rows, text: Range<u64>) -> u64 {
    let pages_start = text.start & !(PAGE_BYTES - 1);
    let pages = (text.end - pages_start).div_ceil(PAGE_BYTES);
    let first = rows.rows.partition_point(|row| row.0 <= pages_start);
    let end = rows.rows.partition_point(|row| row.0 < text.end);
    pages + 2 + end.saturating_sub(first) as u64
}

fn described(rows: &Rows, text: Range<u64>) -> Vec<Range<u64>> {
    let mut pieces = Vec::new();
    let mut start = text.start;
    let first = rows.rows.partition_point(|row| row.0 <= text.start);
    for index in first.saturating_sub(1)..rows.rows.len() {
        let (addr, rule) = rows.rows[index];
        if addr >= text.end {
            break;
        }
        let end = rows.rows.get(index + 1).map_or(u64::MAX, |next| next.0);
        let left_out = addr.max(text.start)..end.min(text.end);
        let is_bare = matches!(rule, TableRule::Short(Rule::FRAME_POINTER | Rule::NONE));
        if is_bare && left_out.end.saturating_sub(left_out.start) >= MIN_LEFT_OUT_BYTES {
            if start < left_out.start {
                pieces.push(start..left_out.start);
            }
            start = left_out.end;
        }
    }
    if start < text.end {
        pieces.push(start..text.end);
    }
    pieces
}

/// Makes the table for a piece of text; `None` for an empty one, and for one that had to be cut.
#[must_use]
pub fn build(rows: &Rows, text: Range<u64>) -> Option<Table> {
    let pages_start = text.start & !(PAGE_BYTES - 1);
    let page_count = text.end.checked_sub(pages_start)?.div_ceil(PAGE_BYTES);
    let page_count = u32::try_from(page_count.min(MAX_PAGES + 1)).ok()?;
    if page_count == 0 || u64::from(page_count) > MAX_PAGES {
        return None;
    }
    let first = rows.rows.partition_point(|row| row.0 <= pages_start);
    let end = rows.rows.partition_point(|row| row.0 < text.end);
    let mut table = Table {
        pages_start,
        page_count,
        words: vec![0; page_count as usize + 1],
        ..Table::default()
    };
    table.words.reserve_exact(end.saturating_sub(first) + 1);
    let mut places = vec![None; rows.wide.len()];
    // The first row is for all before the first function.
    let before = (pages_start, rows.lookup(pages_start));
    let mut indexed = 0;
    for &(addr, rule) in [before].iter().chain(&rows.rows[first..end.max(first)]) {
        let page = ((addr - pages_start) / PAGE_BYTES) as usize;
        let position = table.words.len() as u32;
        table.words[indexed..=page].fill(position);
        indexed = indexed.max(page + 1);
        let rule = table.encode(rule, rows, &mut places);
        table.words.push(row(addr, rule));
    }
    let position = table.words.len() as u32;
    table.words[indexed..=page_count as usize].fill(position);
    Some(table)
}

impl Table {
    /// The rule of the row that is appended next; `places` says where wide rules of `rows` are in
    /// this table.
    fn encode(&mut self, rule: TableRule, rows: &Rows, places: &mut [Option<u32>]) -> Rule {
        let index = match rule {
            TableRule::Short(rule) => return rule,
            TableRule::Wide(index) => index as usize,
        };
        let place = *places[index].get_or_insert_with(|| {
            self.wide.push(rows.wide[index]);
            self.wide.len() as u32 - 1
        });
        self.wide_rows.push(self.words.len() as u32);
        Rule::wide(place).unwrap_or(Rule::NONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SP_8: TableRule = TableRule::Short(Rule(1 << 11));
    const FP: TableRule = TableRule::Short(Rule::FRAME_POINTER);

    fn rows(rows: &[(u64, TableRule)]) -> Rows {
        let wide = |offset| WideRule {
            cfa_offset: offset,
            ..WideRule::default()
        };
        Rows {
            rows: rows.to_vec(),
            wide: (0..4).map(wide).collect(),
        }
    }

    #[test]
    fn words_are_an_index_and_then_rows() {
        let rows = rows(&[
            (0x1010, SP_8),
            (0x10ff, TableRule::Wide(2)),
            (0x1300, TableRule::NONE),
        ]);
        let table = build(&rows, 0x1010..0x1310).unwrap();
        assert_eq!((table.pages_start, table.page_count), (0x1000, 4));
        assert_eq!(table.row_count(), 4);
        let (none, sp_8) = (Rule::NONE.0, 1 << 11);
        let wide = Rule::WIDE << 22;
        // The third row lies in the first page, the fourth at the start of the fourth.
        assert_eq!(table.words[..5], [5, 8, 8, 8, 9]);
        assert_eq!(
            table.words[5..],
            [none, 0x10 << 24 | sp_8, 0xff << 24 | wide, none]
        );
        assert_eq!(table.wide, [rows.wide[2]]);
        assert_eq!(table.lookup(0x12ff), TableRule::Wide(0));
        assert_eq!(table.lookup(0x100f), TableRule::NONE);
        assert_eq!(table.lookup(0x1400), TableRule::NONE);
        assert_eq!(table.lookup(0), TableRule::NONE);
    }

    #[test]
    fn placed_table_counts_from_the_start_of_all_tables() {
        let rows = rows(&[(0, TableRule::Wide(3)), (8, SP_8), (16, TableRule::Wide(1))]);
        let table = build(&rows, 0..32).unwrap();
        let global = [77, u32::MAX];
        let words = table.place(1000, |wide| Rule::wide(global[wide as usize]));
        assert_eq!(words[..2], [1002, 1005]);
        let rules: Vec<_> = words[2..].iter().map(|&word| row_rule(word)).collect();
        // The second wide rule found no place.
        let expected = [Rule::wide(77).unwrap(), Rule(1 << 11), Rule::NONE];
        assert_eq!(rules, expected);
    }

    #[test]
    fn every_byte_can_have_its_row() {
        let rule = |addr: u64| TableRule::Short(Rule(addr as u32 % 7));
        let all: Vec<_> = (0x300..0x700).map(|addr| (addr, rule(addr))).collect();
        let rows = rows(&all);
        let table = build(&rows, 0x280..0x780).unwrap();
        for addr in 0x200..0x800 {
            assert_eq!(table.lookup(addr), rows.lookup(addr), "{addr:#x}");
        }
    }

    #[test]
    fn long_pieces_without_rules_are_left_out() {
        const LONG: u64 = 1 << 20;
        let rows = rows(&[
            (0, FP),
            (LONG, SP_8),
            (LONG + 256, FP),
            (2 * LONG + 255, SP_8),
            (3 * LONG, TableRule::NONE),
            (9 * LONG, SP_8),
            (9 * LONG + 1, TableRule::NONE),
        ]);
        assert_eq!(
            pieces(&rows, 0..20 * LONG),
            [LONG..3 * LONG, 9 * LONG..9 * LONG + 1]
        );
        let short = LONG..LONG + 16;
        assert_eq!(pieces(&rows, short.clone()).first(), Some(&short));
        assert!(pieces(&rows, 10 * LONG..12 * LONG).is_empty());
        assert!(pieces(&rows, 5..5).is_empty());
    }

    #[test]
    fn long_tables_are_cut_between_pages() {
        let all: Vec<_> = (0..3 * MAX_TABLE_WORDS as u64)
            .map(|at| (0x180 + at * 2, TableRule::Short(Rule(at as u32 % 7))))
            .collect();
        let rows = rows(&all);
        let text = 0x180..0x180 + 6 * MAX_TABLE_WORDS as u64;
        let pieces = pieces(&rows, text.clone());
        assert_eq!(pieces.len(), 4);
        assert_eq!((pieces[0].start, pieces[3].end), (text.start, text.end));
        for (index, piece) in pieces.iter().enumerate() {
            let table = build(&rows, piece.clone()).unwrap();
            let words = table.words.len();
            assert_eq!(words as u64, words_of(&rows, piece.clone()));
            assert!(words <= MAX_TABLE_WORDS && (index == 3 || words > MAX_TABLE_WORDS - 200));
            for addr in [piece.start, piece.start + 1, piece.end - 1] {
                assert_eq!(table.lookup(addr), rows.lookup(addr), "{addr:#x}");
            }
        }
    }

    #[test]
    fn huge_claims_have_no_table() {
        let rows = rows(&[(0, SP_8)]);
        assert_eq!(build(&rows, 0..u64::MAX), None);
        assert!(pieces(&rows, 0..u64::MAX).is_empty());
        assert_eq!(pieces(&rows, 0..MAX_TEXT_BYTES).len(), 257);
        assert_eq!(build(&rows, 0..0), None);
        assert_eq!(build(&Rows::default(), 0..16).unwrap().row_count(), 1);
    }
}
